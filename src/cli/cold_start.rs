//! How long a process takes until its first step is done, and what that time goes to.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::pipeline::{Startup, StepReport};

/// From the begin of `main` to the end of the first step.
pub struct ColdStart {
    started: Instant,
    /// When flags were read, the device and the model's files opened.
    opened: Duration,
    first: Option<First>,
    /// Of all graphs so far: those of steps come after the first one.
    graphs: Duration,
}

struct First {
    total: Duration,
    step: Duration,
    startup: Startup,
}

impl ColdStart {
    /// `started` is when the process was; everything is opened now.
    pub fn new(started: Instant) -> Self {
        Self { started, opened: started.elapsed(), first: None, graphs: Duration::ZERO }
    }

    pub fn step(&mut self, report: &StepReport) {
        self.graphs = report.startup.graphs;
        if self.first.is_some() {
            return;
        }
        let (total, startup) = (self.started.elapsed(), report.startup);
        self.first = Some(First { total, step: Duration::from_secs_f64(report.seconds), startup });
        let split = self.json();
        let part = |name: &str| split[name].as_f64().unwrap_or_default();
        tracing::info!(
            "cold start {:.3} s: open {:.3}, plan {:.3}, read {:.3}, upload {:.3}, texts {:.3}, first step {:.3}; of \
             these, kernels {:.3} and graphs {:.3}",
            part("total_s"),
            part("open_s"),
            part("plan_s"),
            part("read_s"),
            part("upload_s"),
            part("texts_s"),
            part("first_step_s"),
            part("modules_s"),
            part("graphs_s")
        );
    }

    /// Seconds. `open_s` to `first_step_s` add up to `total_s`; what kernels and graphs took lies inside of the texts
    /// and the first step, but for a step's own graph, which is made when it runs for the second time.
    pub fn json(&self) -> Value {
        let Some(First { total, step, startup }) = &self.first else { return Value::Null };
        let before = self.opened + startup.plan + startup.read + startup.upload + *step;
        let seconds = |time: Duration| json!((time.as_secs_f64() * 1e6).round() / 1e6);
        json!({
            "total_s": seconds(*total),
            "open_s": seconds(self.opened),
            "plan_s": seconds(startup.plan),
            "read_s": seconds(startup.read),
            "upload_s": seconds(startup.upload),
            "texts_s": seconds(total.saturating_sub(before)),
            "first_step_s": seconds(*step),
            "modules_s": seconds(startup.modules),
            "graphs_s": seconds(self.graphs),
        })
    }
}
