//! How slowly bytes may come and go: who sends or takes next to nothing holds memory and places that others need.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::admission::Account;

/// Bytes a second at which a peer is waited for as long as it likes.
const ENOUGH: u32 = 16 << 10;

/// Time that a peer has left to send or to take something: it is spent while it is waited for, and earned by bytes.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    most: Duration,
    left: Duration,
    waiting: Option<Instant>,
}

impl Pace {
    /// Of a peer that may rest for `most`.
    pub(crate) const fn new(most: Duration) -> Self {
        Self { most, left: most, waiting: None }
    }

    /// The peer's turn, if it was not before. Until when it is waited for.
    pub(crate) fn wait(&mut self) -> Instant {
        *self.waiting.get_or_insert_with(Instant::now) + self.left
    }

    /// The peer has sent or taken `bytes`: it is not waited for any more.
    pub(crate) fn moved(&mut self, bytes: usize) {
        let spent = self.waiting.take().map_or(Duration::ZERO, |since| since.elapsed());
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1) * bytes / ENOUGH;
        self.left = (self.left.saturating_sub(spent) + earned).min(self.most);
    }
}

/// Time that a peer may let pass at once where what it does not take is short.
const HURRY: Duration = Duration::from_secs(10);

/// From then on that is looked at so often.
const LOOK: Duration = Duration::from_secs(5);

/// Wakes who waits for a peer when it has waited long enough. Made when there is something to wait for: mostly there is not.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready once it is `until`, which may be another time than before.
    pub(crate) fn poll(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(cx)
    }
}

/// Ready once a peer is not waited for any more: its time is over, or there is little room left for its caller's answers.
pub(crate) fn given_up(pace: &mut Pace, alarm: &mut Alarm, room: &Account, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        let until = pace.wait();
        let now = Instant::now();
        let hurried = pace.waiting.unwrap_or(now) + HURRY;
        if now >= until || now >= hurried && room.is_short() {
            return Poll::Ready(());
        }
        // Whether there is room is looked at every few seconds from there on.
        let looks = now.checked_duration_since(hurried).map_or(0, |over| 1 + over.as_secs() / LOOK.as_secs());
        let look = hurried + LOOK * u32::try_from(looks).unwrap_or(u32::MAX);
        ready!(alarm.poll(until.min(look), cx));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn only_the_time_that_a_peer_is_waited_for_counts() {
        let mut pace = Pace::new(10 * SECOND);
        sleep(100 * SECOND).await;
        assert_eq!(pace.wait() - Instant::now(), 10 * SECOND);
        sleep(4 * SECOND).await;
        assert_eq!(pace.wait() - Instant::now(), 6 * SECOND, "asking again gives no more time");
        pace.moved(0);
        sleep(100 * SECOND).await;
        assert_eq!(pace.wait() - Instant::now(), 6 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_earn_time_but_do_not_save_it_up() {
        let mut pace = Pace::new(10 * SECOND);
        pace.wait();
        sleep(5 * SECOND).await;
        pace.moved(2 * ENOUGH as usize);
        assert_eq!(pace.wait() - Instant::now(), 7 * SECOND);
        pace.moved(usize::MAX);
        assert_eq!(pace.wait() - Instant::now(), 10 * SECOND);
        // A byte a second is not enough.
        let began = Instant::now();
        while pace.wait() >= Instant::now() + SECOND {
            sleep(SECOND).await;
            pace.moved(1);
        }
        assert_eq!(began.elapsed().as_secs(), 10);
    }
}
