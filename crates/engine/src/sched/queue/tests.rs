use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;

mod waits;

use super::*;
use crate::registry::ModelSlot;

#[derive(Debug, Clone)]
struct TestJob {
    id: usize,
    lane: Lane,
    tenant: u32,
    deadline: Option<Instant>,
    rows: usize,
    slot: SlotId,
    alone: bool,
    max_batch: usize,
    max_concurrency: usize,
    profile: Option<Arc<Profile>>,
    batching: Option<Batching>,
    submitted: Instant,
}

impl Schedulable for TestJob {
    fn lane(&self) -> Lane {
        self.lane
    }
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn tenant(&self) -> (TenantId, f64) {
        (TenantId(self.tenant), 1.0)
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn group(&self) -> GroupKey {
        let batch = (!self.alone).then(key);
        GroupKey { slot: self.slot, version: VersionSelector::Live, batch }
    }
    fn max_batch(&self) -> usize {
        self.max_batch
    }
    fn max_concurrency(&self) -> usize {
        self.max_concurrency
    }
    fn batching(&self) -> Option<&Batching> {
        self.batching.as_ref()
    }
    fn submitted(&self) -> Instant {
        self.submitted
    }
    fn profile(&self) -> Option<(&Profile, RowClass)> {
        self.profile.as_deref().map(|profile| (profile, RowClass::default()))
    }
}

fn queue(min_share: f64) -> RunQueue<TestJob> {
    RunQueue::new(QueueConfig {
        min_share,
        max_block: Duration::from_millis(25),
        learned: true,
        low_executors: 64,
    })
}

fn key() -> BatchKey {
    use torchlane_model::{ArgKind, Argument, Binding, ModelManifest, NamedTensor, Signature};
    let argument = Argument { name: "x".into(), kind: ArgKind::Tensor, has_default: false, skips: 0 };
    let signature = Signature::new(vec![argument], &[], &ModelManifest::default()).unwrap();
    let tensor = torchlane_model::tensor::HostTensor::zeros(
        torchlane_model::tensor::DType::F32,
        [1, 2].as_slice().into(),
    )
    .unwrap();
    Binding::new(&std::sync::Arc::new(signature), &[NamedTensor { name: "x".into(), tensor }], 8)
        .unwrap()
        .key
        .unwrap()
}

fn slots(n: usize) -> Vec<SlotId> {
    (0..n).map(|i| ModelSlot::new(format!("m{i}").parse().unwrap()).id()).collect()
}

fn job(id: usize, lane: Lane, slot: SlotId) -> TestJob {
    TestJob {
        id,
        lane,
        tenant: 0,
        deadline: None,
        rows: 1,
        slot,
        alone: false,
        max_batch: 8,
        max_concurrency: 0,
        profile: None,
        batching: None,
        submitted: Instant::now(),
    }
}

fn ids(jobs: &[TestJob]) -> Vec<usize> {
    jobs.iter().map(|job| job.id).collect()
}

#[test]
fn a_critical_job_is_in_the_next_batch_of_whichever_model() {
    let (mut queue, s) = (queue(0.0), slots(2));
    for id in 0..1000 {
        queue.push(job(id, Lane::Low, s[0]));
    }
    queue.push(job(5000, Lane::Critical, s[1]));
    assert_eq!(ids(&queue.pop(Instant::now(), 0).jobs), [5000]);
    queue.push(job(5001, Lane::Critical, s[0]));
    assert_eq!(ids(&queue.pop(Instant::now(), 0).jobs), [5001, 0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn late_jobs_are_handed_out_and_not_run() {
    let (mut queue, s, now) = (queue(0.0), slots(1), Instant::now());
    for id in 0..4 {
        let deadline = Some(now + Duration::from_millis(if id % 2 == 0 { 10 } else { 1000 }));
        queue.push(TestJob { deadline, ..job(id, Lane::Normal, s[0]) });
    }
    let popped = queue.pop(now + Duration::from_millis(10), 0);
    assert_eq!((ids(&popped.jobs), ids(&popped.late)), (vec![1, 3], vec![0, 2]));
}

#[test]
fn a_model_runs_no_more_often_than_it_may() {
    let (mut queue, s, now) = (queue(0.0), slots(2), Instant::now());
    for id in 0..3 {
        queue.push(TestJob { alone: true, max_concurrency: 1, ..job(id, Lane::Critical, s[0]) });
    }
    queue.push(job(9, Lane::Low, s[1]));
    assert_eq!(ids(&queue.pop(now, 0).jobs), [0]);
    assert_eq!(ids(&queue.pop(now, 0).jobs), [9], "the other model is not held up");
    assert!(queue.pop(now, 0).jobs.is_empty());
    queue.push(TestJob { alone: true, max_concurrency: 1, ..job(3, Lane::Critical, s[0]) });
    assert!(queue.pop(now, 0).jobs.is_empty(), "pushed while full");
    queue.finished(s[0], Lane::Normal);
    assert_eq!(ids(&queue.pop(now, 0).jobs), [1]);
}

#[test]
fn large_requests_are_not_overtaken_in_their_group() {
    let (mut queue, s) = (queue(0.0), slots(1));
    for (id, rows) in [(0, 3), (1, 6), (2, 1)] {
        queue.push(TestJob { rows, ..job(id, Lane::Normal, s[0]) });
    }
    assert_eq!(ids(&queue.pop(Instant::now(), 0).jobs), [0]);
    assert_eq!(ids(&queue.pop(Instant::now(), 0).jobs), [1, 2]);
}

proptest! {
    /// Against a naive model: a plain list, searched from the front each time.
    #[test]
    fn behaves_like_a_sorted_list(
        ops in prop::collection::vec(
            (0_usize..10, 0_usize..4, 0_u32..3, 0_usize..3, 1_usize..4, prop::option::of(1_u64..30)),
            1..120,
        ),
    ) {
        let now = Instant::now();
        let (mut queue, s) = (queue(0.0), slots(3));
        let mut naive: Vec<(TestJob, Handle)> = Vec::new();
        let mut answered = BTreeSet::new();
        for (id, (op, lane, tenant, slot, rows, deadline)) in ops.into_iter().enumerate() {
            match op {
                0..=5 => {
                    let deadline = deadline.map(|d| now + Duration::from_millis(d));
                    let job = TestJob { rows, tenant, deadline, ..job(id, Lane::ALL[lane], s[slot]) };
                    naive.push((job.clone(), queue.push(job)));
                }
                6 if !naive.is_empty() => {
                    let (job, handle) = naive.remove(id % naive.len());
                    prop_assert_eq!(queue.remove(handle).map(|j| j.id), Some(job.id));
                    prop_assert!(queue.remove(handle).is_none());
                }
                _ => {
                    let at = now + Duration::from_millis(deadline.unwrap_or(0));
                    let order = |job: &TestJob| (job.lane, job.tenant, job.deadline.is_none(), job.deadline, job.id);
                    let popped = queue.pop(at, 0);
                    for late in &popped.late { prop_assert!(late.deadline.unwrap() <= at); }
                    // Late ones that stood in the way are gone from both.
                    let gone: BTreeSet<_> = popped.late.iter().map(|j| j.id).collect();
                    naive.retain(|(job, _)| !gone.contains(&job.id));
                    naive.sort_by_key(|(job, _)| order(job));
                    // Nobody is ever charged here, so the first tenant by number has the turn; within a batch each row
                    // taken puts its tenant behind the others.
                    let in_time = |job: &TestJob| job.deadline.is_none_or(|d| d > at);
                    let mut expect: Vec<usize> = Vec::new();
                    if let Some((first, _)) = naive.iter().find(|(job, _)| in_time(job)) {
                        let mut rows = first.rows;
                        let mut had = std::collections::HashMap::from([((first.lane, first.tenant), first.rows)]);
                        expect.push(first.id);
                        'full: for lane in Lane::ALL {
                            loop {
                                let left = naive.iter().map(|(job, _)| job).filter(|job| {
                                    job.slot == first.slot && job.lane == lane && in_time(job) && !expect.contains(&job.id)
                                });
                                let turn = |job: &&TestJob| had.get(&(lane, job.tenant)).copied().unwrap_or(0);
                                // The list is sorted: the first of those whose turn it is.
                                let Some(next) = left.min_by_key(|job| (turn(job), job.tenant)) else { break };
                                if rows >= 8 || rows + next.rows > 8 { break 'full; }
                                rows += next.rows;
                                *had.entry((lane, next.tenant)).or_insert(0) += next.rows;
                                expect.push(next.id);
                            }
                        }
                    }
                    prop_assert_eq!(ids(&popped.jobs), expect.clone());
                    naive.retain(|(job, _)| !expect.contains(&job.id));
                    for job in popped.jobs.iter().chain(&popped.late) { prop_assert!(answered.insert(job.id), "twice"); }
                    if let Some(job) = popped.jobs.first() { queue.finished(job.slot, job.lane); }
                }
            }
            prop_assert_eq!(queue.waiting().iter().sum::<usize>(), naive.len());
        }
        prop_assert_eq!(queue.drain().len(), naive.len());
        prop_assert!(queue.groups.is_empty() && queue.by_key.is_empty());
    }
}

#[test]
fn a_changed_limit_strands_nobody() {
    let now = Instant::now();
    let slot = slots(1).remove(0);
    let with = |id, limit| TestJob { alone: true, max_concurrency: limit, ..job(id, Lane::Normal, slot) };
    let mut queue = queue(0.05);
    queue.push(with(0, 1));
    queue.push(with(1, 1));
    assert_eq!(queue.pop(now, 0).jobs.len(), 1);
    assert!(queue.pop(now, 0).jobs.is_empty(), "one at once");
    // Raised while one waits behind the one that runs.
    queue.push(with(2, 2));
    assert_eq!(queue.pop(now, 0).jobs.first().unwrap().id, 1);
    assert!(queue.pop(now, 0).jobs.is_empty(), "two at once");
    queue.finished(slot, Lane::Normal);
    assert_eq!(queue.pop(now, 0).jobs.first().unwrap().id, 2);
    // Lowered while two run: both must end first.
    queue.push(with(3, 1));
    queue.finished(slot, Lane::Normal);
    assert!(queue.pop(now, 0).jobs.is_empty(), "one still runs");
    queue.finished(slot, Lane::Normal);
    assert_eq!(queue.pop(now, 0).jobs.first().unwrap().id, 3);
    queue.finished(slot, Lane::Normal);
    assert!(queue.is_empty());
}

fn learned(times: &[(usize, u64)]) -> Option<Arc<Profile>> {
    let profile = Profile::default();
    for (rows, ms) in times {
        profile.record(RowClass::default(), *rows, Duration::from_millis(*ms));
    }
    Some(Arc::new(profile))
}

#[test]
fn a_batch_is_no_longer_than_others_may_be_made_to_wait() {
    let (now, slot) = (Instant::now(), slots(1).remove(0));
    let profile = learned(&[(1, 10), (2, 13), (4, 20), (8, 35)]);
    let mut queue = queue(0.0);
    for id in 0..16 {
        queue.push(TestJob { profile: profile.clone(), ..job(id, Lane::Low, slot) });
    }
    assert_eq!(queue.pop(now, 0).jobs.len(), 4, "8 would take 35 ms");
    // Nor longer than the first has time.
    let hurried = TestJob {
        profile: profile.clone(),
        deadline: Some(now + Duration::from_millis(15)),
        ..job(99, Lane::Normal, slot)
    };
    queue.push(hurried);
    assert_eq!(queue.pop(now, 0).jobs.len(), 2);
    // One that takes longer alone runs alone.
    let long = slots(1).remove(0);
    let profile = learned(&[(1, 100), (8, 100)]);
    for id in 0..2 {
        queue.push(TestJob { profile: profile.clone(), ..job(id, Lane::High, long) });
    }
    assert_eq!(queue.pop(now, 0).jobs.len(), 1);
}

#[test]
fn what_cannot_be_in_time_is_not_run() {
    let (now, slot) = (Instant::now(), slots(1).remove(0));
    let due = |ms| TestJob {
        profile: learned(&[(1, 10)]),
        deadline: Some(now + Duration::from_millis(ms)),
        ..job(usize::try_from(ms).unwrap(), Lane::Normal, slot)
    };
    let mut queue = queue(0.0);
    queue.push(due(5));
    queue.push(due(50));
    let popped = queue.pop(now, 0);
    assert_eq!(popped.late.first().unwrap().id, 5);
    assert_eq!(popped.jobs.first().unwrap().id, 50);
}

#[test]
fn low_work_leaves_executors_free() {
    let (now, s) = (Instant::now(), slots(2));
    let max_block = Duration::from_millis(25);
    let mut queue =
        RunQueue::new(QueueConfig { min_share: 0.05, max_block, learned: true, low_executors: 1 });
    let alone = |id, lane, slot| TestJob { alone: true, ..job(id, lane, slot) };
    queue.push(alone(0, Lane::Low, s[0]));
    queue.push(alone(1, Lane::Low, s[1]));
    assert_eq!(queue.pop(now, 1).jobs.len(), 1);
    assert!(queue.pop(now, 0).jobs.is_empty(), "the second executor waits for better");
    queue.push(alone(2, Lane::Normal, s[1]));
    assert_eq!(queue.pop(now, 0).jobs.first().unwrap().id, 2);
    queue.finished(s[1], Lane::Normal);
    assert!(queue.pop(now, 0).jobs.is_empty());
    queue.finished(s[0], Lane::Low);
    assert_eq!(queue.pop(now, 0).jobs.first().unwrap().id, 1);
}

#[test]
fn tenants_get_equal_time_though_one_sends_ten_times_as_much() {
    let (now, s) = (Instant::now(), slots(2));
    let mut queue = queue(0.05);
    let mut id = 0;
    let mut time = [Duration::ZERO; 2];
    let mut of_b = 0;
    for round in 0..4000 {
        while of_b < 8 {
            of_b += 1;
            for tenant in [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] {
                id += 1;
                // What B sends is for the slower model.
                queue.push(TestJob { tenant, ..job(id, Lane::Normal, s[tenant as usize]) });
            }
        }
        let jobs = queue.pop(now, 0).jobs;
        let tenant = jobs[0].tenant;
        assert!(jobs.iter().all(|job| job.tenant == tenant));
        of_b -= if tenant == 1 { jobs.len() } else { 0 };
        let each = Duration::from_millis(if tenant == 1 { 3 } else { 1 });
        let cost = each * u32::try_from(jobs.len()).unwrap();
        let charge = Charge { lane: Lane::Normal, tenant: TenantId(tenant), weight: 1.0, cost };
        queue.charge(&[charge]);
        queue.finished(jobs[0].slot, Lane::Normal);
        if round > 100 {
            time[tenant as usize] += cost;
        }
    }
    let ratio = time[1].as_secs_f64() / time[0].as_secs_f64();
    assert!((0.9..=1.1).contains(&ratio), "{ratio} {time:?}");
}

#[test]
fn batches_take_sizes_of_buckets() {
    let (mut queue, slot, now) = (queue(0.0), slots(1).remove(0), Instant::now());
    let text = "[batching]\nbuckets = [1, 4, 8]";
    let batching = Some(torchlane_model::ModelManifest::parse(text).unwrap().batching);
    let profile = learned(&[(1, 3), (4, 5), (8, 20)]);
    for id in 0..7 {
        let (batching, profile) = (batching.clone(), profile.clone());
        queue.push(TestJob { batching, profile, ..job(id, Lane::Normal, slot) });
    }
    assert_eq!(queue.pop(now, 0).jobs.len(), 4, "7 would take as long as 8");
    assert_eq!(queue.pop(now, 0).jobs.len(), 3, "3 run as 4");
}
