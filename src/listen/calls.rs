//! A connection and the calls that came by it, as one task of the runtime.
//!
//! HTTP/2 hands each call to an executor. With a task for each, a client with a thousand calls under way would have a thousand turns
//! where one with a single call has one, and each call would cost the scheduler a turn of its own, and the connection another for
//! what the call has to say. Here what became ready on a connection is done in the connection's turn, as far as the runtime's budget
//! for a task goes; what is left waits for the next, after everybody else's.
//!
//! Calls that are under way when their connection ends are dropped: there is nobody to answer.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;

use super::turns::Turn;
use crate::throttle::Writes;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the calls of one connection. Clones are for the same one.
#[derive(Clone, Default)]
pub(super) struct Calls {
    /// Those that came since the connection's turn began.
    new: Arc<Mutex<Vec<Call>>>,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        self.lock().push(Box::pin(call));
    }
}

impl Calls {
    /// Carries out the calls until the connection that brings them ends.
    pub(super) async fn with<C: Future>(&self, connection: Pin<&mut C>, mut turn: Turn) -> C::Output {
        let mut parts = FuturesUnordered::new();
        parts.push(Part::Connection(connection));
        poll_fn(|cx| {
            ready!(turn.poll(cx));
            let before = Writes::here();
            let (outcome, calls) = self.go_on(&mut parts, cx);
            turn.over(calls, Writes::here() - before);
            outcome
        })
        .await
    }

    /// One turn, and how many calls began or ended in it.
    fn go_on<C: Future>(
        &self,
        parts: &mut FuturesUnordered<Part<'_, C>>,
        cx: &mut Context<'_>,
    ) -> (Poll<C::Output>, usize) {
        let mut calls = 0;
        loop {
            match parts.poll_next_unpin(cx) {
                Poll::Ready(Some(Some(ended))) => return (Poll::Ready(ended), calls),
                Poll::Ready(Some(None)) => calls += 1,
                // Without the connection it would have ended.
                Poll::Ready(None) | Poll::Pending => {
                    let mut new = self.lock();
                    if new.is_empty() {
                        return (Poll::Pending, calls);
                    }
                    calls += new.len();
                    parts.extend(new.drain(..).map(Part::Call));
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is woken by itself. Its output is that of the connection.
enum Part<'a, C> {
    Connection(Pin<&'a mut C>),
    Call(Call),
}

impl<C: Future> Future for Part<'_, C> {
    type Output = Option<C::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Part::Connection(connection) => connection.as_mut().poll(cx).map(Some),
            Part::Call(call) => call.as_mut().poll(cx).map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;
    use tokio::task::{coop, yield_now};

    use super::*;
    use crate::listen::turns::Turns;
    use crate::throttle::Throttle;

    #[tokio::test]
    async fn a_connection_with_a_thousand_calls_lets_others_have_their_turn() {
        let (calls, answered) = (Calls::default(), Arc::new(AtomicUsize::new(0)));
        let ended = Arc::new(Notify::new());
        let connection = {
            let (calls, answered, ended) = (calls.clone(), answered.clone(), ended.clone());
            async move {
                for _ in 0..1000 {
                    let answered = answered.clone();
                    calls.execute(async move {
                        coop::consume_budget().await;
                        answered.fetch_add(1, Ordering::Relaxed);
                    });
                }
                ended.notified().await;
            }
        };
        let turns = Arc::new(Turns::new(Arc::new(Throttle::new(true))));
        let turn = turns.turn();
        let calling = tokio::spawn(async move { turns.call().await });
        let serving = tokio::spawn(async move { calls.with(pin!(connection), turn).await });
        let (mut before, mut steps) = (0, Vec::new());
        while before < 1000 {
            yield_now().await;
            let now = answered.load(Ordering::Relaxed);
            steps.push(now - before);
            before = now;
        }
        assert!(steps.iter().all(|step| *step <= 200), "{steps:?}");
        ended.notify_one();
        serving.await.unwrap();
        calling.abort();
    }

    #[tokio::test]
    async fn calls_wait_for_what_they_want_each_by_itself_and_end_with_their_connection() {
        let (calls, gate, ended) = (Calls::default(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let held = Arc::new(());
        let connection = async {
            for _ in 0..3 {
                let (gate, held, ended) = (gate.clone(), held.clone(), ended.clone());
                calls.execute(async move {
                    gate.notified().await;
                    drop(held);
                    ended.notify_one();
                    std::future::pending::<()>().await;
                });
            }
            // Two of them go on, and the third waits for ever.
            for _ in 0..2 {
                gate.notify_one();
                ended.notified().await;
            }
            Arc::strong_count(&held)
        };
        let turn = Arc::new(Turns::new(Arc::new(Throttle::new(true)))).turn();
        assert_eq!(calls.with(pin!(connection), turn).await, 2);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
