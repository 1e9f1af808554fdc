//! What settings may be, where their types do not say it.

use std::time::Duration;

use bytesize::ByteSize;
use torchlane_repository::seal::Policy;

use super::{hosts, log, settings::Settings};
use crate::{admission::TenantSettings, model::MOST_SAMPLES};

impl Settings {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// The key, its value, and what is allowed.
    pub fn validate(&self) -> Result<(), (&'static str, String, &'static str)> {
        let a = &self.admission;
        let counts = [
            ("admission.max_in_flight", a.max_in_flight, 1, 1 << 20, "1 to 1048576"),
            ("admission.queue_depth", a.queue_depth, 0, 1 << 20, "0 to 1048576"),
            ("admission.control_in_flight", a.control_in_flight, 1, 1024, "1 to 1024"),
            ("admission.control_queue", a.control_queue, 0, 1 << 20, "0 to 1048576"),
            ("server.max_streams", self.server.max_streams as usize, 1, 1 << 20, "1 to 1048576"),
            ("server.max_requests", self.server.max_requests, 1, 1 << 24, "1 to 16777216"),
            ("server.max_open_calls", self.server.max_open_calls, 16, 1 << 24, "16 to 16777216"),
            ("server.max_connections", self.server.max_connections, 1, 1 << 20, "1 to 1048576"),
            ("loader.threads", self.loader.threads, 1, 64, "1 to 64"),
            ("loader.spare", self.loader.spare, 0, 64, "0 to 64"),
            ("samples.record", self.samples.record, 0, MOST_SAMPLES, "0 (none) to 1000"),
            ("executors.threads", self.executors.threads, 0, 1024, "0 to 1024"),
            ("executors.intra_op_threads", self.executors.intra_op_threads, 0, 1024, "0 to 1024"),
            ("executors.spare", self.executors.spare, 0, 64, "0 to 64"),
            ("server.io_threads", self.server.io_threads, 0, 1024, "0 to 1024"),
            ("memory.max_waiting", self.memory.max_waiting, 0, 1 << 20, "0 to 1048576"),
            ("memory.max_waiting_per_model", self.memory.max_waiting_per_model, 0, 1 << 20, "0 to 1048576"),
        ];
        for (key, value, least, most, allowed) in counts {
            if !(least..=most).contains(&value) {
                return Err((key, value.to_string(), allowed));
            }
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(&self.server.http_idle) {
            let value = humantime::format_duration(self.server.http_idle).to_string();
            return Err(("server.http_idle", value, "1s to 24h"));
        }
        self.validate_durations()?;
        if let Err(error) = log::filter(&self.log.level) {
            return Err(("log.level", error, "a level, or a filter such as info,torchlane::access=off"));
        }
        if let Some(problem) = self.telemetry.problem() {
            return Err(problem);
        }
        if let Some(problem) = hosts::problem(&self.server.hosts, &self.server.origins) {
            return Err(problem);
        }
        let shares = [
            ("admission.headroom_high", a.headroom_high),
            ("admission.headroom_normal", a.headroom_normal),
            ("admission.headroom_low", a.headroom_low),
        ];
        for (key, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return Err((key, value.to_string(), "0 up to (not including) 1"));
            }
        }
        if !(0.0..=0.3).contains(&a.min_share) {
            return Err(("admission.min_share", a.min_share.to_string(), "0 to 0.3"));
        }
        if !(1024..=2 * 1024 * 1024 * 1024 - 1).contains(&self.server.max_message_bytes.as_u64()) {
            return Err((
                "server.max_message_bytes",
                self.server.max_message_bytes.to_string(),
                "1KiB up to (not including) 2GiB",
            ));
        }
        let caller_share = self.server.caller_share;
        if !(0.01..=1.0).contains(&caller_share) {
            return Err(("server.caller_share", caller_share.to_string(), "0.01 to 1"));
        }
        let p = &self.pressure;
        for (key, value) in [
            ("pressure.memory", p.memory),
            ("pressure.in_flight_bytes", p.in_flight_bytes),
            ("pressure.cpu", p.cpu),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err((key, value.to_string(), "0 (not looked at) to 1"));
            }
        }
        // Else a LOW message could be refused because of its own bytes.
        let share = if p.in_flight_bytes > 0.0 { p.in_flight_bytes.min(0.875) } else { 0.875 };
        let least = self.server.max_message_bytes.as_u64() as f64 / (share * caller_share);
        if (self.server.max_in_flight_bytes.as_u64() as f64) < least {
            let mib = (least / ByteSize::mib(1).as_u64() as f64).ceil();
            let value = format!("{} (write '{mib}MiB')", self.server.max_in_flight_bytes);
            let allowed = "at least server.max_message_bytes / pressure.in_flight_bytes / server.caller_share, so that one message fits";
            return Err(("server.max_in_flight_bytes", value, allowed));
        }
        if let Some((key, value, allowed)) = self.tenants.values().find_map(TenantSettings::problem) {
            let key = match key {
                "weight" => "tenants.*.weight",
                _ => "tenants.*.rate",
            };
            return Err((key, value, allowed));
        }
        if self.integrity.policy == Policy::Signed && self.integrity.trusted_keys.is_empty() {
            let allowed = "at least one public key where integrity.policy is signed";
            return Err(("integrity.trusted_keys", "[]".to_owned(), allowed));
        }
        if let Some((value, allowed)) = self.safety.problem() {
            return Err(("safety.allow", value, allowed));
        }
        if let Some(uploads) = &self.oip.uploads
            && (uploads.as_os_str().is_empty() || uploads.to_string_lossy().contains("://"))
        {
            return Err(("oip.uploads", uploads.display().to_string(), "a directory on this machine"));
        }
        self.validate_stores()?;
        if self.repositories.is_empty() {
            return Err(("repositories", "[]".to_owned(), "at least one directory"));
        }
        Ok(())
    }

    /// No clock can be set to the end of a time that is longer than its own.
    fn validate_durations(&self) -> Result<(), (&'static str, String, &'static str)> {
        const LEAST: Duration = Duration::from_millis(1);
        const MOST: Duration = Duration::from_secs(365 * 24 * 3600);
        let least_and_most = [
            ("admission.max_deadline", self.admission.max_deadline, LEAST),
            ("executors.max_block", self.executors.max_block, LEAST),
            ("memory.max_wait", self.memory.max_wait, LEAST),
            ("loader.time_limit", self.loader.time_limit, LEAST),
            ("telemetry.timeout", self.telemetry.timeout, LEAST),
            ("server.grace", self.server.grace, Duration::ZERO),
            ("server.drain_delay", self.server.drain_delay, Duration::ZERO),
            ("executors.stuck_after", self.executors.stuck_after, Duration::ZERO),
            ("loader.patience", self.loader.patience, Duration::ZERO),
            ("watch.interval", self.watch.interval, Duration::ZERO),
            ("watch.settle", self.watch.settle, Duration::ZERO),
        ];
        for (key, value, least) in least_and_most {
            if !(least..=MOST).contains(&value) {
                let allowed = if least.is_zero() { "0s to 365days" } else { "1ms to 365days" };
                return Err((key, humantime::format_duration(value).to_string(), allowed));
            }
        }
        Ok(())
    }
}
