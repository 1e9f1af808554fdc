//! Jobs that wait for others.

use super::*;

const DELAY: Duration = Duration::from_millis(2);

fn patient(id: usize, slot: SlotId, now: Instant) -> TestJob {
    let text = "[batching]\nmax_batch = 4\nmax_delay = '2ms'";
    let batching = torchlane_model::ModelManifest::parse(text).unwrap().batching;
    TestJob { batching: Some(batching), max_batch: 4, submitted: now, ..job(id, Lane::Normal, slot) }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn jobs_wait_for_others_no_longer_than_their_model_says() {
    let (mut queue, s, now) = (queue(0.0), slots(1), Instant::now());
    queue.push(patient(0, s[0], now));
    let handle = queue.push(patient(1, s[0], now + ms(1)));
    let popped = queue.pop(now + ms(1), 1);
    assert_eq!((popped.jobs.len(), popped.wait_until), (0, Some(now + DELAY)));
    assert!(queue.is_held(&handle));
    // One that joins wakes no executor, and does not begin the wait anew.
    let third = queue.push(patient(2, s[0], now + ms(1)));
    assert!(queue.is_held(&third));
    let popped = queue.pop(now + DELAY, 1);
    assert_eq!((ids(&popped.jobs), popped.wait_until), (vec![0, 1, 2], None));
}

#[test]
fn enough_rows_or_an_urgent_job_end_the_wait() {
    let (mut queue, s, now) = (queue(0.0), slots(2), Instant::now());
    for (slot, last) in
        [(s[0], patient(3, s[0], now)), (s[1], TestJob { lane: Lane::Critical, ..patient(3, s[1], now) })]
    {
        let before = if last.lane == Lane::Critical { 1 } else { 3 };
        for id in 0..before {
            queue.push(patient(id, slot, now));
        }
        assert!(queue.pop(now, 3).jobs.is_empty());
        let critical = last.lane == Lane::Critical;
        let handle = queue.push(last);
        assert!(!queue.is_held(&handle));
        // In one batch, though other executors have nothing to do.
        let popped = queue.pop(now, 3);
        assert_eq!(ids(&popped.jobs), if critical { vec![3, 0] } else { vec![0, 1, 2, 3] });
        queue.finished(slot, popped.jobs[0].lane);
    }
    assert!(queue.is_empty() && queue.held.is_empty());
}

#[test]
fn what_the_profile_finds_best_is_enough() {
    let (mut queue, s, now) = (queue(0.0), slots(1), Instant::now());
    let profile = learned(&[(1, 4), (2, 5), (4, 20)]);
    queue.push(TestJob { profile: profile.clone(), ..patient(0, s[0], now) });
    assert!(queue.pop(now, 0).jobs.is_empty());
    queue.push(TestJob { profile, ..patient(1, s[0], now) });
    assert_eq!(queue.pop(now, 0).jobs.len(), 2);
}

#[test]
fn other_work_runs_while_a_group_waits() {
    let (mut queue, s, now) = (queue(0.0), slots(2), Instant::now());
    queue.push(patient(0, s[0], now));
    queue.push(job(1, Lane::Low, s[1]));
    let popped = queue.pop(now, 0);
    assert_eq!((ids(&popped.jobs), popped.wait_until), (vec![1], Some(now + DELAY)));
    assert_eq!(ids(&queue.pop(now + DELAY, 0).jobs), [0]);
}

#[test]
fn nobody_is_late_for_having_waited() {
    let (mut queue, s, now) = (queue(0.0), slots(1), Instant::now());
    let due = |id, deadline| TestJob {
        deadline: Some(now + ms(deadline)),
        profile: learned(&[(1, 20), (4, 20)]),
        ..patient(id, s[0], now)
    };
    queue.push(due(0, 1000));
    assert!(queue.pop(now, 0).jobs.is_empty());
    // 20 ms for the pass, twice its deviation, and the timer's 1 ms.
    queue.push(due(1, 32));
    let wait = queue.pop(now, 0).wait_until.unwrap();
    assert_eq!(wait, now + ms(1));
    assert_eq!(queue.pop(wait, 0).jobs.len(), 2);
    queue.finished(s[0], Lane::Normal);
    queue.push(due(2, 25));
    assert_eq!(queue.pop(now, 0).jobs.len(), 1, "no time to wait at all");
}

#[test]
fn a_job_that_leaves_takes_the_wait_with_it() {
    let (mut queue, s, now) = (queue(0.0), slots(1), Instant::now());
    let handle = queue.push(patient(0, s[0], now));
    assert!(queue.pop(now, 0).wait_until.is_some());
    assert!(queue.remove(handle).is_some());
    assert_eq!(queue.pop(now, 0).wait_until, None);
    assert!(queue.groups.is_empty());
    queue.push(patient(1, s[0], now));
    assert!(queue.pop(now, 0).jobs.is_empty());
    assert_eq!(queue.drain().len(), 1);
    assert_eq!(queue.pop(now + DELAY, 0).wait_until, None);
}

proptest! {
    /// An executor that looks at the times the queue names finds every job, and none has waited for company longer than it may.
    #[test]
    fn no_wait_is_forgotten(
        steps in prop::collection::vec((0_u64..3, 0_usize..3, 0_usize..4, 1_usize..4, 0_usize..8), 1..60),
    ) {
        let start = Instant::now();
        let (mut queue, s) = (queue(0.0), slots(3));
        let (mut now, mut timer, mut left) = (start, None::<Instant>, BTreeSet::new());
        let mut handles = Vec::new();
        let look = |queue: &mut RunQueue<TestJob>, left: &mut BTreeSet<usize>, at: Instant| loop {
            let popped = queue.pop(at, 0);
            let Some(first) = popped.jobs.first() else { break popped.wait_until };
            for job in &popped.jobs {
                assert!(at <= job.submitted + DELAY, "{job:?} waited until {:?}", at - start);
                assert!(left.remove(&job.id));
            }
            queue.finished(first.slot, first.lane);
        };
        for (id, (wait, slot, lane, rows, leave)) in steps.into_iter().enumerate() {
            let next = now + ms(wait);
            while let Some(at) = timer.filter(|at| *at <= next) {
                timer = look(&mut queue, &mut left, at);
            }
            now = next;
            let delayed = slot > 0;
            let job = TestJob { rows, lane: Lane::ALL[lane], ..patient(id, s[slot], now) };
            let handle = queue.push(if delayed { job } else { TestJob { batching: None, ..job } });
            left.insert(id);
            handles.push((id, handle));
            // No executor is woken for a job that is held: the timer must see to it.
            if !queue.is_held(&handle) {
                timer = look(&mut queue, &mut left, now);
            }
            if leave == 0 {
                let (id, handle) = handles[id / 2];
                prop_assert_eq!(queue.remove(handle).is_some(), left.remove(&id));
            }
        }
        while let Some(at) = timer {
            timer = look(&mut queue, &mut left, at);
        }
        prop_assert!(left.is_empty() && queue.is_empty(), "{:?}", left);
        prop_assert!(queue.groups.is_empty() && queue.held.is_empty() && queue.heads.is_empty());
    }
}
