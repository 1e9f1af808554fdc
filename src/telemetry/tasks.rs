//! Metrics of background tasks.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabel {
    task: &'static str,
}

/// Their starts after a panic; clones count together.
#[derive(Debug, Clone, Default)]
pub struct TaskMetrics(Family<TaskLabel, Counter>);

impl TaskMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Background tasks that panicked and were started again";
        registry.register("task_restarts", help, self.0.clone());
    }

    /// A task starts for the first time: it is at 0, or the first restart would be no increase.
    pub(crate) fn started(&self, task: &'static str) {
        let _at_zero = self.0.get_or_create(&TaskLabel { task });
    }

    /// A task panicked and starts again.
    pub(crate) fn restarted(&self, task: &'static str) {
        self.0.get_or_create(&TaskLabel { task }).inc();
    }

    /// How often it did.
    #[cfg(test)]
    pub(crate) fn restarts(&self, task: &'static str) -> u64 {
        self.0.get_or_create(&TaskLabel { task }).get()
    }
}
