//! How the operator writes its log: one JSON object a line for machines, plain text for terminals.
//!
//! Each turn of a controller runs in one span ([`reconcile`]); its fields stand at the top of every line written
//! inside it, so that a log store can select a tenant without knowing about spans.
//!
//! Refused, whatever the filter says: lines in which libraries quote what they received. kube logs the whole body
//! of an answer that it cannot parse, and bodies hold Secrets.

use std::fmt;
use std::io::IsTerminal;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::{Event, Level, Metadata, Span, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Lines for people.
    Text,
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error(
        "--log {filter:?}: {source}; write a level (error, warn, info, debug) or, like kaas_operator=debug,info, levels by module"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else set up a log before.
    #[error("the log was already set up: {0}")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up the process's log, on standard output.
pub fn init(format: Format, filter: &str) -> Result<(), Error> {
    subscriber(format, filter, std::io::stdout)?.try_init()?;
    Ok(())
}

/// The span of one turn. `id` tells the turns of a process apart.
pub fn reconcile(controller: &'static str, namespace: &str, name: &str, uid: &str, id: u64) -> Span {
    tracing::info_span!(
        "reconcile",
        controller,
        tenant_namespace = namespace,
        tenant_name = name,
        tenant_uid = uid,
        reconcile_id = id
    )
}

fn subscriber<W>(format: Format, filter: &str, writer: W) -> Result<impl Subscriber + Send + Sync, Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let asked =
        EnvFilter::try_new(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })?;
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match format {
        Format::Json => layer.fmt_fields(JsonFields::new()).event_format(Flat).boxed(),
        Format::Text => layer.with_ansi(std::io::stdout().is_terminal()).with_target(true).boxed(),
    };
    Ok(tracing_subscriber::registry().with(layer.with_filter(filter_fn(is_fit))).with(asked))
}

/// Whether a line of this origin may be written at all.
fn is_fit(metadata: &Metadata<'_>) -> bool {
    let (target, level) = (metadata.target(), *metadata.level());
    match target {
        // Quotes bodies, at level warn. Its submodules do not.
        "kube_client::client" => false,
        // Reports each failed request as an error, which whoever sent it does with more sense.
        "kube_client::client::builder" => matches!(level, Level::DEBUG),
        // TRACE sorts last: it shows raw bytes in some libraries.
        _ => target.starts_with("kaas") || level <= Level::DEBUG,
    }
}

/// Writes an event as one flat JSON object: the fields of its spans from the outermost in, its own fields, and last
/// what every line has. A later one replaces an earlier one of the same name.
struct Flat;

impl<S> FormatEvent<S, JsonFields> for Flat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<JsonFields>>() {
                add(&mut line, &fields.fields);
            }
        }
        let mut own = String::new();
        context.format_fields(Writer::new(&mut own), event)?;
        add(&mut line, &own);
        let metadata = event.metadata();
        line.insert("timestamp".to_owned(), Timestamp::now().to_string().into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("target".to_owned(), metadata.target().into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

fn add(line: &mut Map<String, Value>, fields: &str) {
    // No fields at all is an empty text, which is not JSON.
    if let Ok(Value::Object(fields)) = serde_json::from_str(fields) {
        line.extend(fields);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing::{Instrument, debug, info, trace, warn};

    use super::*;

    /// What was written, for [`MakeWriter`].
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Page {
        type Writer = Page;

        fn make_writer(&'a self) -> Page {
            self.clone()
        }
    }

    fn written(format: Format, filter: &str, act: impl FnOnce()) -> Vec<String> {
        let page = Page::default();
        tracing::subscriber::with_default(subscriber(format, filter, page.clone()).unwrap(), act);
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    fn objects(lines: &[String]) -> Vec<Value> {
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn fields_of_the_turn_stand_at_the_top_of_every_line() {
        let lines = written(Format::Json, "info", || {
            reconcile("tenantcluster", "team-a", "blue", "1234", 7)
                .in_scope(|| info!(objects = 3, "applied"));
        });
        let line = &objects(&lines)[0];
        for (field, value) in [
            ("controller", Value::from("tenantcluster")),
            ("tenant_namespace", "team-a".into()),
            ("tenant_name", "blue".into()),
            ("tenant_uid", "1234".into()),
            ("reconcile_id", 7.into()),
            ("objects", 3.into()),
            ("message", "applied".into()),
            ("level", "INFO".into()),
            ("target", "kaas_operator::telemetry::tests".into()),
        ] {
            assert_eq!(line[field], value, "{field} in {line}");
        }
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.parse::<Timestamp>().is_ok() && timestamp.ends_with('Z'), "{timestamp}");
        assert!(line.as_object().unwrap().values().all(|value| !value.is_object()), "flat: {line}");
    }

    #[test]
    fn inner_fields_replace_outer_ones_and_nothing_replaces_the_frame() {
        let lines = written(Format::Json, "info", || {
            let outer = tracing::info_span!("outer", step = "observe", level = "forged");
            let _outer = outer.enter();
            tracing::info_span!("inner", step = "apply")
                .in_scope(|| info!(target: "kaas_x", timestamp = 1, "said"));
        });
        let line = &objects(&lines)[0];
        assert_eq!((&line["step"], &line["level"]), (&"apply".into(), &"INFO".into()));
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn text_cannot_break_out_of_its_line() {
        let lines = written(Format::Json, "info", || {
            let name = "x\"}\n{\"level\":\"ERROR\u{1b}[2J";
            reconcile("tenantcluster", "team-a", name, "1", 1).in_scope(|| info!("{name}"));
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(objects(&lines)[0]["level"], "INFO");
    }

    #[tokio::test]
    async fn a_turn_carries_its_span_over_awaits() {
        let page = Page::default();
        let _log = tracing::subscriber::set_default(subscriber(Format::Json, "info", page.clone()).unwrap());
        let turn = |name: &'static str, id| {
            async move {
                tokio::task::yield_now().await;
                info!("{name}");
            }
            .instrument(reconcile("tenantcluster", "team-a", name, name, id))
        };
        tokio::join!(turn("blue", 1), turn("gold", 2));
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines.len(), 2);
        for line in objects(&lines) {
            assert_eq!(line["tenant_name"], line["message"], "{line}");
        }
    }

    #[test]
    fn lines_that_quote_what_a_server_sent_are_refused_at_any_filter() {
        let lines = written(Format::Text, "trace", || {
            warn!(target: "kube_client::client", "{{\"kind\":\"Secret\",\"data\":...}}, expected value");
            trace!(target: "hyper::proto::h1::io", "received bytes");
            debug!(target: "kube_client::client::builder", "requesting");
            trace!(target: "kaas_operator::execute", "ours");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("requesting") && lines[1].contains("ours"));
    }

    #[test]
    fn the_filter_is_followed_and_a_bad_one_named() {
        let lines = written(Format::Text, "warn,kaas_operator=debug", || {
            debug!("kept");
            info!(target: "else", "dropped");
        });
        assert_eq!(lines.len(), 1);
        let failure = subscriber(Format::Json, "kaas=loud", Page::default()).err().unwrap().to_string();
        assert!(
            failure.contains("--log \"kaas=loud\"") && failure.contains("error, warn, info"),
            "{failure}"
        );
    }
}
