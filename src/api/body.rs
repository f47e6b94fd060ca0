//! The bodies of our responses, and what connections are given of them.
//!
//! tonic's bodies are bytes in one place. What most calls are about is written by ourselves, and events are put together as late as
//! when a connection sends them. Whoever calls our services from inside is given everything in one place ([`Plain`]).

use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::codegen::Service;

use super::unary::Rest;
use super::watch::Responses;
use super::woven::Woven;

/// The body of a response.
pub(super) enum Body {
    /// As tonic makes it.
    Tonic(tonic::body::Body),
    /// One message, or what is left of it, and the word that all is well.
    Message(Rest),
    /// What a stream of watchers is told.
    Watch(Box<Responses>),
}

/// What a connection is given at a time.
#[derive(Debug)]
pub enum Payload {
    /// All in one place.
    Whole(Bytes),
    /// Put together when it is sent.
    Woven(Box<Woven>),
}

impl http_body::Body for Body {
    type Data = Payload;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Payload>, Status>>> {
        let whole = |frame: Frame<Bytes>| frame.map_data(Payload::Whole);
        match &mut *self {
            Body::Tonic(body) => Pin::new(body).poll_frame(cx).map_ok(whole),
            Body::Message(rest) => rest.poll_next(cx).map(|frame| frame.map(whole).map(Ok)),
            Body::Watch(responses) => {
                let frame = Pin::new(&mut **responses).poll_frame(cx);
                frame.map_ok(|frame| frame.map_data(|woven| Payload::Woven(Box::new(woven))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Tonic(body) => body.is_end_stream(),
            Body::Message(rest) => matches!(rest, Rest::Nothing),
            Body::Watch(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Tonic(body) => body.size_hint(),
            Body::Message(_) | Body::Watch(_) => SizeHint::default(),
        }
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        match self {
            Payload::Whole(bytes) => bytes.remaining(),
            Payload::Woven(woven) => woven.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Payload::Whole(bytes) => bytes.chunk(),
            Payload::Woven(woven) => woven.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            Payload::Whole(bytes) => bytes.chunks_vectored(slices),
            Payload::Woven(woven) => woven.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Payload::Whole(bytes) => bytes.advance(count),
            Payload::Woven(woven) => woven.advance(count),
        }
    }
}

/// A service for tonic's clients, who want bytes in one place.
#[derive(Clone, Debug)]
pub(super) struct Plain<S>(pub(super) S);

impl<S, B, R> Service<Request<B>> for Plain<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible, Future: Send + 'static>,
    R: http_body::Body<Data: Buf>,
{
    type Response = Response<PlainBody<R>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move { Ok(answer.await?.map(PlainBody)) })
    }
}

/// A body in whose frames everything is in one place.
pub(super) struct PlainBody<R>(R);

impl<R: http_body::Body<Data: Buf> + Unpin> http_body::Body for PlainBody<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        frame.map_ok(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
