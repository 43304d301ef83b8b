//! Traces: what one order went through, over all processes. The W3C trace context
//! (<https://www.w3.org/TR/trace-context/>) of a request or message goes on in the headers and
//! envelopes of what follows from it, whether traces are exported or not.
//!
//! Most traces are looked at by nobody. Where they are not exported, or a message says that it is not
//! sampled, there is no span, only the text that is passed on. In a batch each sampled message has a
//! span of its own; the steps of the batch are timed once and told in each of these.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::OnceLock;
use std::time::SystemTime;

pub use opentelemetry::trace::SpanKind;
use opentelemetry::trace::{
    FutureExt as _, Span as _, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags,
    TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use crate::message::is_traceparent;

/// Steps of one batch that are told; further ones are not.
const MOST_STEPS: usize = 64;

/// Where spans go; nothing where traces are not exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

pub(crate) fn start(tracer: SdkTracer) {
    // A second start in one process keeps the first.
    TRACER.get_or_init(|| tracer);
}

/// The place of a request or message in its trace.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// What is passed on to whatever follows.
    parent: Option<String>,
    /// The span, if somebody will look at it.
    span: Option<Context>,
}

impl Trace {
    /// A request or command comes in. The sampler decides, also about one that comes without a trace.
    pub fn enter(
        kind: SpanKind,
        traceparent: Option<&str>,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        match TRACER.get() {
            Some(tracer) => Self::begin(tracer, kind, traceparent, name()),
            None => Self::passing(traceparent),
        }
    }

    /// A message is worked on. It has a span only if it belongs to a trace that is sampled.
    pub fn follow(traceparent: Option<&str>, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        match (TRACER.get(), traceparent) {
            (Some(tracer), Some(parent)) if is_sampled(parent) => {
                Self::begin(tracer, SpanKind::Consumer, traceparent, name())
            }
            _ => Self::passing(traceparent),
        }
    }

    /// A step within this one that others will follow.
    #[must_use]
    pub fn step(&self, kind: SpanKind, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        match (TRACER.get(), &self.span) {
            (Some(tracer), Some(_)) => Self::begin(tracer, kind, self.traceparent(), name()),
            _ => self.clone(),
        }
    }

    /// A trace that nobody looks at: only passed on.
    fn passing(traceparent: Option<&str>) -> Self {
        let parent = traceparent.filter(|text| is_traceparent(text)).map(str::to_owned);
        Self { parent, span: None }
    }

    fn begin(
        tracer: &SdkTracer,
        kind: SpanKind,
        traceparent: Option<&str>,
        name: Cow<'static, str>,
    ) -> Self {
        let parent = match traceparent.and_then(context) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let span = tracer.span_builder(name).with_kind(kind).start_with_context(tracer, &parent);
        let parent = Some(text(span.span_context()));
        let span = span.is_recording().then(|| Context::new().with_span(span));
        Self { parent, span }
    }

    /// The `traceparent` of what follows from this.
    pub fn traceparent(&self) -> Option<&str> {
        self.parent.as_deref()
    }

    /// The id of the trace, for log entries.
    pub fn id(&self) -> Option<&str> {
        self.parent.as_deref().and_then(|text| text.get(3..35))
    }

    /// Whether somebody will look at this.
    pub fn is_recorded(&self) -> bool {
        self.span.is_some()
    }

    /// Tells more of it.
    pub fn tell(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &self.span {
            span.span().set_attribute(KeyValue::new(name, value));
        }
    }

    /// It ends; with an error, if it has failed. Without this it ends when it is dropped.
    pub fn end(&self, error: Option<&str>) {
        if let Some(span) = &self.span {
            if let Some(error) = error {
                span.span().set_status(Status::error(error.to_owned()));
            }
            span.span().end();
        }
    }

    /// Runs `work`; what it logs belongs to this.
    pub async fn around<F: Future>(&self, work: F) -> F::Output {
        match &self.span {
            Some(span) => work.with_context(span.clone()).await,
            None => work.await,
        }
    }
}

fn is_sampled(traceparent: &str) -> bool {
    let flags = traceparent.get(53..55).and_then(|flags| u8::from_str_radix(flags, 16).ok());
    flags.is_some_and(|flags| flags & 1 == 1) && is_traceparent(traceparent)
}

fn context(traceparent: &str) -> Option<SpanContext> {
    if !is_traceparent(traceparent) {
        return None;
    }
    let trace = TraceId::from_hex(traceparent.get(3..35)?).ok()?;
    let span = SpanId::from_hex(traceparent.get(36..52)?).ok()?;
    let flags = u8::from_str_radix(traceparent.get(53..55)?, 16).ok()?;
    // Of the flags only "sampled" is known.
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

fn text(context: &SpanContext) -> String {
    let flags = (context.trace_flags() & TraceFlags::SAMPLED).to_u8();
    format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
}

/// A step of a batch: its name, and from when to when.
type Step = (&'static str, SystemTime, SystemTime);

tokio::task_local! {
    /// The steps of the batch that this task works on, if somebody will look at one of its messages.
    static STEPS: RefCell<Vec<Step>>;
}

/// Runs the work on a batch; its steps ([`step`]) are told in the span of each message that has one.
pub async fn batch<F: Future>(messages: Vec<&Trace>, work: F) -> F::Output {
    if messages.is_empty() {
        return work.await;
    }
    let told = async {
        let output = work.await;
        (output, STEPS.with(RefCell::take))
    };
    let (output, steps) = STEPS.scope(RefCell::default(), told).await;
    if let Some(tracer) = TRACER.get() {
        for span in messages.into_iter().filter_map(|it| it.span.as_ref()) {
            for (name, start, end) in &steps {
                let step = tracer.span_builder(*name).with_start_time(*start);
                step.start_with_context(tracer, span).end_with_timestamp(*end);
            }
        }
    }
    output
}

/// Does a step of the work on a batch: it is timed where somebody will look.
pub async fn step<F: Future>(name: &'static str, work: F) -> F::Output {
    if STEPS.try_with(|_| ()).is_err() {
        return work.await;
    }
    let start = SystemTime::now();
    let output = work.await;
    // Only outside of the task is it not there; then nobody looks.
    STEPS
        .try_with(|steps| {
            let mut steps = steps.borrow_mut();
            if steps.len() < MOST_STEPS {
                steps.push((name, start, SystemTime::now()));
            }
        })
        .ok();
    output
}
