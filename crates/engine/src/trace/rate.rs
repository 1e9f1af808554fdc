//! Which requests are traced: a share of them, which may change while the server runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is traced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceRate {
    /// Requests are traced at all.
    pub on: bool,
    /// Share of those whose caller has not decided it, 0 to 1.
    pub share: f64,
}

impl TraceRate {
    /// So many requests for one that is traced, rounded. `None`: none is but where its caller wants it.
    pub fn one_in(self) -> Option<u64> {
        // Floats round to the nearest whole number that there is; a share is 0 or more, so it is never negative.
        (self.share > 0.0).then(|| (1.0 / self.share).round() as u64)
    }
}

/// Decides for each request. One atomic, so that each sees a rate as somebody set it.
#[derive(Debug)]
pub struct Sampling {
    /// Bits of the share; while tracing is off with the sign that no share has.
    now: AtomicU64,
    begin: TraceRate,
}

impl Sampling {
    pub(super) fn new(share: f64) -> Self {
        let begin = TraceRate { on: true, share: share.abs() };
        Self { now: AtomicU64::new(bits(begin)), begin }
    }

    /// What holds now.
    pub fn rate(&self) -> TraceRate {
        let bits = self.now.load(Ordering::Relaxed);
        TraceRate { on: bits & OFF == 0, share: f64::from_bits(bits & !OFF) }
    }

    /// What held at the start.
    pub fn begin(&self) -> TraceRate {
        self.begin
    }

    /// Holds for requests that come from here on.
    pub fn set(&self, rate: TraceRate) {
        self.now.store(bits(rate), Ordering::Relaxed);
    }

    /// `decided` is what the caller says.
    pub(super) fn takes(&self, decided: Option<bool>) -> bool {
        let TraceRate { on, share } = self.rate();
        on && decided.unwrap_or_else(|| fastrand::f64() < share)
    }
}

/// The sign bit of a float.
const OFF: u64 = 1 << 63;

fn bits(TraceRate { on, share }: TraceRate) -> u64 {
    let share = share.abs().to_bits();
    if on { share } else { share | OFF }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_at_once_and_off_is_off_for_those_whose_caller_decided_too() {
        let sampling = Sampling::new(0.01);
        assert_eq!((sampling.rate().one_in(), sampling.begin()), (Some(100), sampling.rate()));
        sampling.set(TraceRate { on: true, share: 1.0 });
        assert!((0..100).all(|_| sampling.takes(None)) && !sampling.takes(Some(false)));
        sampling.set(TraceRate { on: true, share: 0.0 });
        assert_eq!(sampling.rate().one_in(), None);
        assert!((0..100).all(|_| !sampling.takes(None)) && sampling.takes(Some(true)));
        sampling.set(TraceRate { on: false, share: 0.25 });
        assert!(!sampling.takes(Some(true)));
        assert_eq!(sampling.rate(), TraceRate { on: false, share: 0.25 }, "the share is kept");
        sampling.set(TraceRate { on: false, share: 0.0 });
        assert_eq!(sampling.rate(), TraceRate { on: false, share: 0.0 });
        assert_eq!(sampling.begin().one_in(), Some(100));
    }
}
