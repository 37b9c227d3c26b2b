//! Watches that fall behind: what they tell waits as long as their wire says.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Bytes, Frame, SizeHint};
use kube::client::Body;
use tokio::time::{Sleep, sleep_until};

use crate::wire::Wire;

/// The body of an answer; that of a watch knows its wire, and the collection that it is of.
pub(crate) struct Lagging {
    body: Body,
    watch: Option<(Arc<Wire>, String)>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Lagging {
    pub(crate) fn new(body: Body, watch: Option<(Arc<Wire>, String)>) -> Self {
        Lagging { body, watch, pause: None }
    }
}

impl hyper::body::Body for Lagging {
    type Data = Bytes;
    type Error = kube::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, kube::Error>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            let lags = self.watch.as_ref().and_then(|(wire, collection)| wire.lags(collection));
            match lags {
                Some(until) => self.pause = Some(Box::pin(sleep_until(until))),
                None => return Pin::new(&mut self.body).poll_frame(context),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
