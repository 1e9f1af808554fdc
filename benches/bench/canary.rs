//! `make bench-reload`, bad versions that are rolled out beside a sound one under a steady load: how soon each is rolled back,
//! and what callers notice. And sound versions, which must stay.
//!
//! The models are TorchScript (`.canaries/` of the benchmark's models), because what tells a slow version is the time of real
//! passes. Each comes as versions do: its directory is linked into the repository, and `[rollout]` of model.toml names a strategy and
//! nothing else, but for the outputs' bound, which has no default. Callers name no version and send an id of their own.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::transport::Channel;
use torchlane::proto::{self, RolloutState, model_server_client::ModelServerClient};

use crate::{
    Result,
    picture::{Anchor, Picture},
    process::{self, Server},
    stats::{self, Rounds, percentile},
};

pub struct Plan {
    /// Has `transformer` and `.canaries`.
    pub repository: PathBuf,
    /// Each with a seed of its own.
    pub rounds: usize,
    /// Requests a second.
    pub rate: f64,
    pub only: Vec<String>,
    pub json: PathBuf,
    pub svg: PathBuf,
}

/// From the beginning of a rollout to its end. A sound version must outlast it.
const TIME_AIM: Duration = Duration::from_secs(30);
/// Part of all requests from there on that may fail.
const FAILED_AIM: f64 = 0.01;
/// A bad version that is still there after so long is given up.
const PATIENCE: Duration = Duration::from_secs(90);
/// Before a version comes and after it has gone; what the live version does then is compared.
const QUIET: Duration = Duration::from_secs(8);
/// Between two looks at a rollout.
const LOOK: Duration = Duration::from_millis(100);

struct Scenario {
    name: &'static str,
    title: &'static str,
    archive: &'static str,
    /// Of model.toml.
    rollout: &'static str,
    bad: bool,
}

const CANARY: &str = "[rollout]\nstrategy = \"canary\"\n";
const SHADOW: &str = "[rollout]\nstrategy = \"shadow\"\nmax_difference = 0.01\n";

const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "throws",
        title: "canary, raises for 5 % of the requests",
        archive: "throws",
        rollout: CANARY,
        bad: true,
    },
    Scenario {
        name: "slow",
        title: "canary, three times as slow",
        archive: "slow",
        rollout: CANARY,
        bad: true,
    },
    Scenario {
        name: "drifts",
        title: "shadow, weights 0.3 % off",
        archive: "drifts",
        rollout: SHADOW,
        bad: true,
    },
    Scenario { name: "sound", title: "canary, sound", archive: "sound", rollout: CANARY, bad: false },
    Scenario { name: "sound-shadow", title: "shadow, sound", archive: "sound", rollout: SHADOW, bad: false },
];

/// A request: when it was due, and which version answered.
struct One {
    due: Instant,
    took: Duration,
    answer: std::result::Result<String, String>,
}

/// A look at a rollout.
struct Look {
    at: Instant,
    rollout: proto::Rollout,
}

/// One rollout, from before it began to after its end.
struct Outcome {
    seed: u64,
    /// From the directory's name to the beginning: seen, quiet, loaded, warmed up.
    coming: Duration,
    began: Instant,
    /// Of a sound one: until it was let go.
    lasted: Duration,
    rolled_back: bool,
    last: proto::Rollout,
    looks: Vec<Look>,
    seen: Vec<One>,
}

pub fn run(plan: &Plan) -> Result<()> {
    println!(
        "A new version of the transformer beside the live one, {} requests a second, 10 % of them to it:",
        plan.rate
    );
    println!(
        "  {:12} {:>4} {:>8} {:>11} {:>8} {:>7} {:>9} {:>10} {:>8} {:>24}",
        "version",
        "seed",
        "coming",
        "rolled back",
        "requests",
        "failed",
        "by it",
        "taken over",
        "compared",
        "p99 before, with, after"
    );
    let mut all = serde_json::Map::new();
    all.insert("machine".into(), stats::machine());
    all.insert("rate".into(), plan.rate.into());
    let (mut panels, mut met) = (Vec::new(), true);
    for scenario in &SCENARIOS {
        if !plan.only.is_empty() && !plan.only.iter().any(|only| only == scenario.name) {
            continue;
        }
        let mut outcomes = Vec::new();
        for round in 0..plan.rounds {
            let outcome = roll_out(plan, scenario, 1 + round as u64)?;
            println!("  {}", outcome.row(scenario));
            outcomes.push(outcome);
        }
        let well = verdict(scenario, &outcomes);
        met &= well;
        all.insert(
            scenario.name.into(),
            json!({
                "rollout": scenario.rollout,
                "rounds": outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
                "seconds": Rounds(outcomes.iter().map(|o| o.lasted.as_secs_f64()).collect()).json(),
                "met": well,
            }),
        );
        // The worst is shown.
        if let Some(longest) = outcomes.into_iter().max_by_key(|outcome| outcome.lasted) {
            panels.push((scenario, longest));
        }
    }
    fs::create_dir_all(plan.svg.parent().unwrap_or(Path::new(".")))?;
    fs::write(&plan.svg, draw(plan, &panels))?;
    stats::write_json(&plan.json, &all.into())?;
    if met { Ok(()) } else { Err("a bad version stayed, a sound one did not, or callers noticed".into()) }
}

/// One line for all rounds.
fn verdict(scenario: &Scenario, outcomes: &[Outcome]) -> bool {
    let failed = outcomes.iter().map(Outcome::failed_part).fold(0.0, f64::max);
    let word = |met| if met { "met" } else { "missed" };
    let few = failed < FAILED_AIM;
    let (in_time, text) = if scenario.bad {
        let longest = outcomes.iter().map(|o| o.lasted).max().unwrap_or_default();
        let met = outcomes.iter().all(|o| o.rolled_back) && longest <= TIME_AIM;
        let text = format!("rolled back after at most {:.1} s", longest.as_secs_f64());
        (met, format!("{text} ({} at most: {})", TIME_AIM.as_secs(), word(met)))
    } else {
        let back = outcomes.iter().filter(|o| o.rolled_back).count();
        (back == 0, format!("rolled back {back} of {} times (never: {})", outcomes.len(), word(back == 0)))
    };
    println!(
        "    {}: {text}; {:.2} % failed (below {} %: {})",
        scenario.title,
        failed * 100.0,
        FAILED_AIM * 100.0,
        word(few)
    );
    in_time && few
}

fn roll_out(plan: &Plan, scenario: &Scenario, seed: u64) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("m");
    fs::create_dir_all(&folder)?;
    let live = plan.repository.join("transformer");
    let manifest = fs::read_to_string(live.join("model.toml"))? + "\n" + scenario.rollout;
    fs::write(folder.join("model.toml"), manifest)?;
    symlink(fs::canonicalize(live.join("1"))?, folder.join("1"))?;
    let canary = fs::canonicalize(plan.repository.join(".canaries").join(scenario.archive))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = process::torchlane(dir.path(), &[]).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let sending = send(&server, plan.rate, seed, stop.clone());
        tokio::time::sleep(QUIET).await;

        let named = SystemTime::now();
        symlink(canary, folder.join("2"))?;
        let mut client = ModelServerClient::connect(format!("http://{}", server.grpc)).await?;
        let looks = watch(&mut client, if scenario.bad { PATIENCE } else { TIME_AIM }).await?;
        tokio::time::sleep(QUIET).await;
        stop.store(true, Ordering::Relaxed);
        let seen = sending.join().map_err(|_| "the generator panicked")??;

        let last = looks.last().ok_or("no rollout")?.rollout.clone();
        let time = |at: Option<prost_types::Timestamp>| SystemTime::try_from(at?).ok();
        let since = time(last.since).ok_or("it never began")?;
        let ended = time(last.ended).unwrap_or_else(SystemTime::now);
        // The server's clock is this machine's.
        let began = Instant::now().checked_sub(since.elapsed()?).ok_or("it began before this machine did")?;
        let rolled_back = last.state() == RolloutState::RolledBack;
        let lasted =
            if rolled_back { ended.duration_since(since)? } else { looks[looks.len() - 1].at - began };
        let coming = since.duration_since(named)?;
        Ok(Outcome { seed, coming, began, lasted, rolled_back, last, looks, seen })
    })
}

/// Looks at the rollout until it ends, or has gone on for so long.
async fn watch(client: &mut ModelServerClient<Channel>, most: Duration) -> Result<Vec<Look>> {
    let asked = Instant::now();
    let mut looks: Vec<Look> = Vec::new();
    loop {
        let request = proto::GetRolloutRequest { model: "m".into() };
        let rollout = client.get_rollout(request).await?.into_inner();
        let (at, state) = (Instant::now(), rollout.state());
        if state != RolloutState::NoRollout {
            looks.push(Look { at, rollout });
        }
        let over = looks.first().is_some_and(|first| at - first.at >= most);
        if over || !matches!(state, RolloutState::NoRollout | RolloutState::Running) {
            return Ok(looks);
        }
        if looks.is_empty() && asked.elapsed() > Duration::from_secs(60) {
            return Err("no rollout after a minute".into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Sends at `rate` a second as independent callers do, until `stop`, and times each from when it was due.
fn send(
    server: &Server,
    rate: f64,
    seed: u64,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<Result<Vec<One>>> {
    let to = format!("http://{}", server.grpc);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = ModelServerClient::connect(to).await?;
            let seen = Arc::new(Mutex::new(Vec::new()));
            let mut random = fastrand::Rng::with_seed(seed);
            let mut due = Instant::now();
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate);
                let request = request(&mut random, format!("{seed}-{number}"));
                tokio::time::sleep_until(due.into()).await;
                let (mut client, seen) = (client.clone(), seen.clone());
                tasks.spawn(async move {
                    let answer = match client.infer(request).await {
                        Ok(answer) => Ok(answer.into_inner().version),
                        Err(status) => Err(status.to_string()),
                    };
                    seen.lock().push(One { due, took: due.elapsed(), answer });
                });
                while tasks.try_join_next().is_some() {}
            }
            while tasks.join_next().await.is_some() {}
            let seen = std::mem::take(&mut *seen.lock());
            Ok(seen)
        })
    })
}

/// One item of numbers evenly in [-1, 1).
fn request(random: &mut fastrand::Rng, id: String) -> proto::InferRequest {
    let raw: Vec<u8> = (0..64 * 256).flat_map(|_| (random.f32() * 2.0 - 1.0).to_le_bytes()).collect();
    let input = proto::Tensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![1, 64, 256],
        raw: raw.into(),
        ..Default::default()
    };
    proto::InferRequest { request_id: id, model: "m".into(), inputs: vec![input], ..Default::default() }
}

impl Outcome {
    /// Requests from the beginning of the rollout on.
    fn since(&self) -> impl Iterator<Item = &One> {
        self.seen.iter().filter(|one| one.due >= self.began)
    }

    fn failed(&self) -> usize {
        self.since().filter(|one| one.answer.is_err()).count()
    }

    fn failed_part(&self) -> f64 {
        self.failed() as f64 / self.since().count().max(1) as f64
    }

    /// Answers that reached a caller.
    fn by_canary(&self) -> usize {
        self.since().filter(|one| one.answer.as_deref() == Ok("2")).count()
    }

    /// p50 and p99 in ms of the answers to what was due before the new version came, while it was rolled out, and after.
    fn latencies(&self) -> [[f64; 2]; 3] {
        let (came, end) = (self.began.checked_sub(self.coming), self.began + self.lasted);
        let of = |wanted: &dyn Fn(Instant) -> bool| {
            let answered = self.seen.iter().filter(|one| one.answer.is_ok() && wanted(one.due));
            let mut took: Vec<_> = answered.map(|one| one.took).collect();
            took.sort_unstable();
            [percentile(&took, 0.5) / 1e3, percentile(&took, 0.99) / 1e3]
        };
        [
            of(&|due| came.is_some_and(|came| due < came)),
            of(&|due| due >= self.began && due < end),
            of(&|due| self.rolled_back && due >= end),
        ]
    }

    fn row(&self, scenario: &Scenario) -> String {
        let [before, with, after] = self.latencies();
        let lasted = self.lasted.as_secs_f64();
        let end = if self.rolled_back { format!("{lasted:.1} s") } else { format!("no, {lasted:.0} s") };
        let after = if self.rolled_back { format!("{:.1}", after[1]) } else { "-".into() };
        format!(
            "{:12} {:>4} {:>6.1} s {end:>11} {:>8} {:>7} {:>9} {:>10} {:>8} {:>24}   {}",
            scenario.name,
            self.seed,
            self.coming.as_secs_f64(),
            self.since().count(),
            self.failed(),
            self.by_canary(),
            self.last.fallbacks,
            self.last.compared,
            format!("{:.1}, {:.1}, {after} ms", before[1], with[1]),
            self.last.verdict
        )
    }

    fn json(&self) -> Value {
        let [before, with, after] = self.latencies().map(|[p50, p99]| json!({"p50": p50, "p99": p99}));
        let why: Vec<_> = self.since().filter_map(|one| one.answer.as_ref().err()).take(5).collect();
        json!({
            "seed": self.seed, "coming_seconds": self.coming.as_secs_f64(), "rolled_back": self.rolled_back,
            "seconds": self.lasted.as_secs_f64(), "verdict": self.last.verdict, "requests": self.since().count(),
            "failed": self.failed(), "failures": why, "by_canary": self.by_canary(), "taken_over": self.last.fallbacks,
            "compared": self.last.compared, "different": self.last.different,
            "latency_ms": {"before": before, "with": with, "after": after},
        })
    }

    /// By second of the rollout, from `first` on: answers of the new version that reached callers, requests that the live one
    /// took over, and answers that were only compared.
    fn seconds(&self, first: i64, last: i64) -> Vec<[f64; 3]> {
        let mut seconds = vec![[0.0; 3]; usize::try_from(last - first).unwrap_or(0)];
        let mut add = |at: Instant, kind: usize, count: f64| {
            let after = at.checked_duration_since(self.began).map(|d| d.as_secs_f64());
            let after = after.unwrap_or_else(|| -(self.began - at).as_secs_f64());
            let place = usize::try_from(after.floor() as i64 - first).ok();
            if let Some(second) = place.and_then(|place| seconds.get_mut(place)) {
                second[kind] += count;
            }
        };
        let end = self.began + self.lasted;
        for one in self.seen.iter().filter(|one| one.answer.as_deref() == Ok("2") && one.due < end) {
            add(one.due + one.took, 0, 1.0);
        }
        let (mut taken, mut compared) = (0, 0);
        for Look { at, rollout } in &self.looks {
            add(*at, 1, rollout.fallbacks.saturating_sub(taken) as f64);
            add(*at, 2, rollout.compared.saturating_sub(compared) as f64);
            (taken, compared) = (rollout.fallbacks, rollout.compared);
        }
        seconds
    }
}

/// A row for each scenario: what the new version did, second by second.
fn draw(plan: &Plan, panels: &[(&Scenario, Outcome)]) -> String {
    let (first, last) = (-4_i64, 34_i64);
    let (width, left, right, top, row) = (860.0, 40.0, 16.0, 78.0, 92.0);
    let height = top + row * panels.len() as f64 + 24.0;
    let title = format!(
        "What a new version does of {} requests a second, until it is rolled back (slowest of {} rounds)",
        plan.rate, plan.rounds
    );
    let mut picture = Picture::new(width, height, &title);
    let kinds = [
        ("a", "answered by it"),
        ("b", "failed by it, answered by the live version"),
        ("c", "run by both and compared"),
    ];
    let mut at = left;
    for (class, name) in kinds {
        picture.bar(class, (at, 39.0), (12.0, 12.0));
        picture.text("ink", Anchor::Start, (at + 18.0, 49.0), name);
        at += 60.0 + 6.2 * name.len() as f64;
    }
    let x = |second: f64| left + (second - first as f64) / (last - first) as f64 * (width - left - right);
    // It gets a tenth of them.
    let (tenth, full) = (plan.rate * 0.1, plan.rate * 0.24);
    for (i, (scenario, outcome)) in panels.iter().enumerate() {
        let base = top + row * i as f64 + row - 24.0;
        let y = |count: f64| base - count.min(full) / full * (row - 42.0);
        picture.line("rule", (left, base), (width - right, base));
        picture.line("rule", (left, y(tenth)), (width - right, y(tenth)));
        let text = format!("{tenth:.0}/s");
        picture.text("dim", Anchor::End, (left - 5.0, y(tenth) + 4.0), &text);
        for (second, counts) in (first..).zip(outcome.seconds(first, last)) {
            let mut under = 0.0;
            for (count, (class, _)) in counts.into_iter().zip(kinds) {
                let (from, to) = (y(under), y(under + count));
                if count > 0.0 {
                    let wide = x(1.0) - x(0.0) - 3.0;
                    picture.bar(class, (x(second as f64) + 1.5, to), (wide, (from - to).max(2.0)));
                }
                under += count;
            }
        }
        let end = outcome.lasted.as_secs_f64();
        let what = if outcome.rolled_back { "rolled back" } else { "still there" };
        let reason = outcome.last.verdict.split(':').next().filter(|_| outcome.rolled_back);
        let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        picture.line("mark", (x(end), base - row + 38.0), (x(end), base));
        let told = format!(
            "{what} after {end:.1} s{reason}; {} of {} requests failed",
            outcome.failed(),
            outcome.since().count()
        );
        picture.text("ink", Anchor::Start, (left, base - row + 34.0), scenario.title);
        picture.text("dim", Anchor::End, (width - right, base - row + 34.0), &told);
    }
    let base = top + row * panels.len() as f64 - 24.0;
    for second in (0..=30).step_by(5) {
        picture.text("dim", Anchor::Middle, (x(f64::from(second)), base + 16.0), &format!("{second} s"));
    }
    picture.text("dim", Anchor::Middle, (width / 2.0, height - 6.0), "after the rollout began");
    picture.finish()
}
