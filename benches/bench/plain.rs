//! What libtorch alone gives: the same archives, the same number of threads, one intra-op thread each, inputs that are
//! there already, results that nobody reads.

use std::{
    collections::HashMap,
    io::{BufRead as _, Write as _},
    path::Path,
    sync::{Barrier, mpsc},
    time::{Duration, Instant},
};

use torchlane_torch::tch::{self, CModule, Device, Kind, Tensor};

use crate::{Result, models};

type Order = (&'static models::Model, i64, Duration);

/// Does what each line of standard input says (`MODEL BATCH SECONDS`) and answers in items a second.
/// The threads live as long as the process, as executors do.
pub fn obey(repository: &Path, threads: usize) -> Result<()> {
    tch::set_num_interop_threads(1);
    tch::set_num_threads(1);
    let mut loaded = HashMap::new();
    // All of the repository, as a server would: memory is compared too.
    for entry in std::fs::read_dir(repository)? {
        let entry = entry?;
        let path = entry.path().join("1/model.pt");
        if path.exists() {
            let mut module = CModule::load_on_device(path, Device::Cpu)?;
            module.f_set_eval()?;
            loaded.insert(entry.file_name().into_string().unwrap_or_default(), module);
        }
    }
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let (done, rates) = mpsc::channel();
        let orders: Vec<mpsc::Sender<Order>> = (0..threads)
            .map(|_| {
                let (order, orders) = mpsc::channel::<Order>();
                let (done, loaded, barrier) = (done.clone(), &loaded, &barrier);
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let _guard = tch::no_grad_guard();
                    for (model, batch, long) in orders {
                        let shape = models::batch_of(batch, model.input);
                        let rate = forward_for(&loaded[model.name], &shape, long, barrier);
                        done.send(rate.map(|rate| rate * batch as f64)).expect("nobody waits");
                    }
                });
                order
            })
            .collect();
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let mut words = line.split(' ');
            let mut word = || words.next().ok_or("MODEL BATCH SECONDS");
            let name = word()?;
            let model = models::MODELS.iter().find(|model| model.name == name).ok_or("which model?")?;
            let (batch, long) = (word()?.parse()?, Duration::from_secs_f64(word()?.parse()?));
            for order in &orders {
                order.send((model, batch, long))?;
            }
            let mut sum = 0.0;
            for _ in 0..threads {
                sum += rates.recv()??;
            }
            println!("{sum}");
            std::io::stdout().flush()?;
        }
        Ok(())
    })
}

/// Passes a second of one thread.
fn forward_for(
    module: &CModule,
    shape: &[i64],
    long: Duration,
    barrier: &Barrier,
) -> std::result::Result<f64, tch::TchError> {
    let input = Tensor::f_rand(shape, (Kind::Float, Device::Cpu))?;
    for _ in 0..4 {
        drop(module.forward_ts(&[&input])?);
    }
    barrier.wait();
    let began = Instant::now();
    let mut passes = 0_u32;
    while began.elapsed() < long {
        drop(module.forward_ts(&[&input])?);
        passes += 1;
    }
    Ok(f64::from(passes) / began.elapsed().as_secs_f64())
}
