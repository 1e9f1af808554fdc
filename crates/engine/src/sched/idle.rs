//! Which executors sleep. Pure.

/// Executors that sleep, the last to fall asleep at the end: it is woken first, while its caches still hold the weights.
///
/// One is taken out when it is told to wake up, and when it wakes up of itself: a notice that comes late must find it
/// neither here twice nor here while it works.
#[derive(Debug, Default)]
pub(super) struct Idle(Vec<usize>);

impl Idle {
    pub(super) fn sleeps(&mut self, executor: usize) {
        self.0.push(executor);
    }

    /// Whatever woke it.
    pub(super) fn woke(&mut self, executor: usize) {
        self.0.retain(|idle| *idle != executor);
    }

    pub(super) fn wake_next(&mut self) -> Option<usize> {
        self.0.pop()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executor_is_idle_once_however_late_a_notice_comes() {
        let (held, other) = (0, 1);
        let mut idle = Idle::default();
        idle.sleeps(other);
        idle.sleeps(held);
        // A job is put in, and a notice is on its way.
        assert_eq!(idle.wake_next(), Some(held));
        // Its own timer is faster: it works, and sleeps again.
        idle.woke(held);
        idle.sleeps(held);
        // The notice comes: there is nothing to do.
        idle.woke(held);
        idle.sleeps(held);
        assert_eq!([idle.wake_next(), idle.wake_next(), idle.wake_next()], [Some(held), Some(other), None]);
        // Woken by its timer while nobody noticed: it is not woken for others while it works.
        idle.sleeps(held);
        idle.woke(held);
        assert_eq!(idle.wake_next(), None);
    }
}
