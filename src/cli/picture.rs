//! Pictures: PNG to numbers, numbers to text.

use std::{fs::File, io::BufReader, path::Path};

/// A grey picture, 0 (black) to 1 (white), row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) grey: Vec<f32>,
}

/// Larger pictures are not read.
const MAX_PIXELS: u64 = 64 << 20;

impl Picture {
    /// Reads an 8- or 16-bit PNG; colours become grey.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let bad = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = File::open(path).map_err(|error| bad(&error))?;
        let mut decoder = png::Decoder::new(BufReader::new(file));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(|error| bad(&format!("not a PNG picture ({error})")))?;
        let (width, height) = (reader.info().width, reader.info().height);
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(bad(&format!("{width} x {height} pixels are too many")));
        }
        let size = reader.output_buffer_size().ok_or_else(|| bad(&"too large"))?;
        let mut data = vec![0; size];
        let frame = reader.next_frame(&mut data).map_err(|error| bad(&error))?;
        let channels = frame.color_type.samples();
        let grey = data
            .chunks_exact(channels)
            .take(width as usize * height as usize)
            .map(|pixel| match pixel {
                // ITU-R BT.601 weights.
                [r, g, b, ..] => {
                    (0.299 * f32::from(*r) + 0.587 * f32::from(*g) + 0.114 * f32::from(*b)) / 255.0
                }
                [v, ..] => f32::from(*v) / 255.0,
                [] => 0.0,
            })
            .collect();
        Ok(Self { width: width as usize, height: height as usize, grey })
    }

    /// As text, two characters a pixel, so that it is about as wide as it is high.
    pub(super) fn draw(&self) -> String {
        const SHADES: [char; 10] = [' ', '.', ':', '-', '=', '+', '*', '#', '%', '@'];
        let mut text = String::new();
        for row in self.grey.chunks(self.width.max(1)) {
            for value in row {
                let shade = (value.clamp(0.0, 1.0) * 9.0).round() as usize;
                let c = SHADES.get(shade).copied().unwrap_or('@');
                text.extend([c, c]);
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_dark_as_blank_and_bright_as_dense() {
        let picture = Picture { width: 2, height: 2, grey: vec![1.0, 0.0, 0.0, 0.5] };
        assert_eq!(picture.draw(), "@@\n  ++\n");
    }
}
