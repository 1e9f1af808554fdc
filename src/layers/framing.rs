//! Where a stream of gRPC messages stands: each is a flag, four bytes of length and as many bytes ("Length-Prefixed-Message" of
//! gRPC over HTTP/2).

const PREFIX: u8 = 5;

/// What has been read of it.
#[derive(Debug, Default)]
pub(super) struct Framing {
    /// Bytes of a prefix that is not whole.
    prefix: u8,
    /// The last four of them, as a number.
    length: u32,
    /// Bytes of a message that are to come.
    left: u32,
    /// Messages that have begun; 255 stands for more.
    begun: u8,
}

impl Framing {
    /// Reads on. Whether the data ends within a message.
    pub(super) fn advance(&mut self, mut data: &[u8]) -> bool {
        while let Some((first, behind)) = data.split_first() {
            if self.left > 0 {
                let here = u32::try_from(data.len()).unwrap_or(u32::MAX).min(self.left);
                self.left -= here;
                data = data.get(here as usize..).unwrap_or_default();
                continue;
            }
            if self.prefix == 0 {
                self.begun = self.begun.saturating_add(1);
            }
            // The flag goes out at the top.
            self.length = self.length << 8 | u32::from(*first);
            self.prefix += 1;
            if self.prefix == PREFIX {
                self.left = self.length;
                self.prefix = 0;
            }
            data = behind;
        }
        self.left > 0 || self.prefix > 0
    }

    /// More than one message has begun.
    pub(super) fn has_many(&self) -> bool {
        self.begun > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_it_is_cut_it_knows_where_messages_end() {
        let stream = [&[1, 0, 0, 1, 4][..], &[9; 260], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 7]].concat();
        let ends = [0, 265, 270, 276];
        for cut in 0..=stream.len() {
            let mut framing = Framing::default();
            let (before, after) = stream.split_at(cut);
            assert_eq!(framing.advance(before), !ends.contains(&cut), "{cut}");
            assert_eq!(framing.has_many(), cut > 265, "{cut}");
            assert!(!framing.advance(after) && framing.has_many(), "{cut}");
        }
        let mut framing = Framing::default();
        for (read, byte) in stream.iter().enumerate() {
            assert_eq!(framing.advance(&[*byte]), !ends.contains(&(read + 1)), "{read}");
        }
    }
}
