//! Everwatch: a replicated key-value store, wire-compatible with etcd v3, whose watches never miss.
//!
//! # The map
//!
//! Start here. A member is two synchronous machines and a hub; everything else carries things to and from them.
//!
//! * [`raft::Node`] puts commands in order. It knows terms, votes and entries, and no meaning of any entry.
//! * [`state::StateMachine`] carries them out, in that order. It knows keys, leases, users, members and alarms, and nothing of
//!   how they got there. Every member computes the same from the same commands: revisions, replies, events.
//! * [`watch::Hub`] tells those who asked. Whatever member a watcher asks, it hears the same events with the same revisions.
//!
//! All three are plain structs. A call goes in, and a value says what ought to happen: these entries to disk, these
//! messages to peers, these rows to the backend, these events to that stream. They do not wait, spawn, open files, read
//! clocks or roll dice. So a test can own them and decide itself when anything happens, which is what the golden scripts
//! in `tests/golden/` do.
//!
//! [`server`] owns the loops that feed the machines and carry out what they say; [`storage`] is what it writes to;
//! [`peer`] reaches the other members; [`api`] and [`http`] translate between clients and one [`server::handle::Handle`], the
//! waist through which everything goes that a client can want.
//!
//! ```text
//!              clients                                                     peers
//!                 │ gRPC, HTTP                                              ▲ │
//!         ┌───────▼────────┐                                           ┌────┴─▼───┐
//!         │   api   http   │                                           │   peer   │
//!         └───────┬────────┘                                           └────▲─┬───┘
//!                 │ Handle: propose · linearize · view · watch · renew      │ │ messages
//!         ┌───────▼────────────────────────── server ───────────────────────┴─▼───┐
//!         │   raft loop ─── committed ───▶ apply loop ─── feed ───▶ hub per thread│
//!         └──┬───────────────────────────────────┬─────────────────────────┬──────┘
//!      input │ ▲ output                  command │ ▲ applied       publish │ ▲ outboxes
//!       ┌────▼─┴─────┐                   ┌───────▼─┴──────┐          ┌─────▼─┴────┐
//!       │ raft::Node │                   │  StateMachine  │          │ watch::Hub │     PURE
//!       └────────────┘                   │ mvcc · lease   │          └────────────┘
//!                                        │ auth · cluster │
//!        storage::wal ◀── log thread     └────────────────┘     backend thread ──▶ storage::backend
//! ```
//!
//! # A put, a read, an event
//!
//! **A put.** `api::kv` checks the request and proposes a command. `server::handle` gives it a number and a place to wait
//! for its reply, and puts it into the core's inbox. The core takes all that has come in, and proposes it as one entry to
//! `raft::node`; out come messages for peers and entries for the log thread, which writes and syncs them
//! (`server::disk_threads`, `storage::wal`). When a majority has the entry on disk it comes back committed.
//! `server::apply_loop` gives its commands to `state::apply`, where `mvcc::store` assigns the next revision. Then, in this
//! order and no other: rows and applied index go to the backend thread as one batch, the hubs' feeds are told of the changes, the
//! applied index rises, the waiting client gets its reply.
//!
//! **A read** asks the leader for an index that is sure to hold every earlier write (`raft::read_index`, a majority
//! confirms who leads), waits until this member has applied it, and reads the store at its present revision. A
//! serializable read skips the question.
//!
//! **An event.** `api::watch` opens a stream with one outbox for all its watchers. What the apply loop tells is heard by the hub
//! of the thread that serves the stream (`watch::feed`), before it does anything else for a client; it is matched in `watch::index`
//! and goes, encoded once, into the outboxes of the streams that want it. A watcher that
//! starts in the past, or whose outbox is full, is *unsynced*: nothing is kept for it, `server::watch_loop` reads what it
//! lacks from history until it has caught up. Progress passes through the same outbox, so it never overtakes. `api::frames` makes
//! of each message a response for every watcher that it is for.
//!
//! # The modules, from the bottom up
//!
//! | layer | modules |
//! | ----- | ------- |
//! | vocabulary | [`types`], the nouns · [`pb`], generated messages · [`version`], what we call ourselves |
//! | disk | [`storage`]: the log, the backend, snapshots; the only place that touches data files |
//! | rules | [`mvcc`], keys and their history · [`lease`], grants of time · [`auth`], who may do what · [`cluster`], who belongs · [`watch`], who is told |
//! | machines | [`raft`], the order · [`state`], the consequences |
//! | files of etcd's | [`backup`], our rows as one and one as our rows |
//! | files of ours | [`offline`], for who looks at the directory of a stopped member |
//! | shell | [`peer`], between members · [`server`], loops, tasks and the Handle |
//! | edge | [`api`], etcd's gRPC · [`http`], health, metrics and JSON for gRPC · [`listen`], sockets · [`discovery`], who founds the cluster, and where it is · [`member`], all of it put together |
//! | beside | [`config`], flags and what they mean · [`tls`], certificates · [`logging`] · [`throttle`], who has to wait · [`audit`], who changed what · [`metrics`] · [`client`], [`mod@bench`] and [`ctl`], for our own tools |
//!
//! # Who may import whom
//!
//! Imports point down; a module may name what its row lists and nothing else of ours. A pure module has no tokio, no files,
//! no sockets, no threads, no clock, no dice and no locks. `tests/architecture.rs` reads this table and keeps it true. A name
//! stands for everything below it; tests inside a module's files may name more.
//!
//! | module            | may name                                                                                   | pure |
//! | ----------------- | ------------------------------------------------------------------------------------------ | ---- |
//! | `types` `pb` `version` | –                                                                                     | yes  |
//! | `storage`         | `types`                                                                                    | no   |
//! | `mvcc`            | `types` `pb` `storage::backend` `storage::schema` `storage::Result` `storage::Error`       | yes  |
//! | `lease` `auth` `cluster` | `types` `pb` `storage::backend` `storage::schema` `storage::Result` `storage::Error`       | yes  |
//! | `watch`           | `types` `pb` `mvcc::change` `mvcc::revision`                                               | yes, but for its two queues |
//! | `state`           | `types` `pb` `mvcc` `lease` `auth` `cluster` `storage::backend` `storage::schema` `storage::Result` `storage::Error` | yes |
//! | `backup`          | `types` `pb` `cluster::Version` `mvcc::revision` `storage`                                 | no   |
//! | `raft`            | `types`                                                                                    | yes  |
//! | `peer`            | `throttle` `types` `pb` `tls` `storage::backend` `storage::schema` `storage::snapshot` `storage::Result` `storage::Error` | no |
//! | `server`          | `throttle` `types` `pb` `version` `storage` `mvcc` `lease` `auth` `cluster` `watch` `state` `raft` `peer` `backup` `config` `metrics` `tls` | no |
//! | `api`             | `types` `pb` `version` `backup` `cluster::Version` `server` `state` `auth` `watch` `mvcc` `config` `metrics` `tls` `audit` | no |
//! | `http`            | `version` `pb` `server::handle` `state` `api` `tls` `audit` `listen::Afterwards`           | no   |
//! | `listen`          | `throttle` `config` `tls` `audit` `metrics`                                               | no   |
//! | `discovery`       | `pb` `config` `cluster` `client` `tls`                                                     | no   |
//! | `member`          | `config` `version` `discovery` `server` `api` `http` `listen` `tls` `audit`                | no   |
//! | `config`          | `tls`                                                                                      | no   |
//! | `tls`             | –                                                                                          | no   |
//! | `logging`         | `config`                                                                                   | no   |
//! | `throttle`       | –                                                                                          | no   |
//! | `audit`           | `config` `logging` `metrics`                                                               | no   |
//! | `metrics`         | `types` `version`                                                                          | no   |
//! | `main`            | `config` `logging` `version` `http` `member`                                               | no   |
//! | `offline`         | `types` `pb` `storage` `mvcc` `state`                                                      | no   |
//! | `client`          | `pb` `tls`                                                                                 | no   |
//! | `bench`           | `client` `pb`                                                                              | no   |
//! | `ctl`             | `client` `pb` `version` `backup` `offline` `server::restore` `discovery::endpoints` `tls`  | no   |
//! | `bin`             | `bench` `ctl`                                                                              | no   |
//!
//! Some crates have places of their own, kept by the same test: consensus is named only in `raft` and in `peer`, which carries
//! its messages; the database only in `storage`; gRPC in `peer`, `api`, `listen`, `member` and the tools, so that no loop of `server`
//! knows of it; the HTTP routes in `http`.

pub mod pb;
pub mod types;
pub mod version;

pub mod storage;

pub mod auth;
pub mod cluster;
pub mod lease;
pub mod mvcc;
pub mod watch;

pub mod raft;
pub mod state;

pub mod backup;
pub mod offline;

pub mod peer;
pub mod server;

pub mod api;
pub mod http;
pub mod listen;
pub mod member;

pub mod audit;
pub mod bench;
pub mod client;
pub mod config;
pub mod ctl;
pub mod discovery;
pub mod logging;
pub mod metrics;
pub mod throttle;
pub mod tls;
