//! The commands of members.
//!
//! ```text
//! member add ID URL[,URL…] [learner] [max=N]     at most N (default 1) learners
//! member promote ID, member remove ID
//! member update ID URL[,URL…]
//! member name ID NAME [CLIENT_URL]               what a member tells of itself
//! members                                        the table, and raft's configuration
//! together                                       and below it, indented: commands that are entries of one turn
//! ```
//!
//! A change is answered with the table that follows from it.

use everwatch::pb::etcdserverpb::Member;
use everwatch::pb::everwatchpb::MemberAttributes;
use everwatch::raft::Entry;
use everwatch::state::command::{Change, Kind, MemberAdd, MemberPeerUrls, MemberPromote, MemberRemove};

use crate::kv;
use crate::world::{self, World};

/// Carries out a command of this area; `None` when it is none.
pub(crate) fn run(world: &mut World, words: &[&str], body: &[&str]) -> Option<Vec<String>> {
    let entries = match words {
        ["members"] => return Some(table(world)),
        ["member", ..] => vec![entry(words)],
        ["together"] => body.iter().map(|line| entry(&line.split_whitespace().collect::<Vec<_>>())).collect(),
        _ => return None,
    };
    Some(world.turn(entries).iter().flat_map(world::show_reply).collect())
}

fn entry(words: &[&str]) -> Entry {
    match words {
        ["member", "add", id, urls, options @ ..] => {
            let mut new = MemberAdd { id: id_of(id), peer_urls: list(urls), is_learner: false, learners_max: 1 };
            for option in options {
                match option.split_once('=').unwrap_or((option, "")) {
                    ("learner", _) => new.is_learner = true,
                    ("max", n) => new.learners_max = kv::number(n) as u32,
                    _ => panic!("member add has no option {option}"),
                }
            }
            world::reconfiguration(Change::Add(new))
        }
        ["member", "promote", id] => world::reconfiguration(Change::Promote(MemberPromote { id: id_of(id) })),
        ["member", "remove", id] => world::reconfiguration(Change::Remove(MemberRemove { id: id_of(id) })),
        ["member", "update", id, urls] => {
            world::commands(vec![Kind::MemberPeerUrls(MemberPeerUrls { id: id_of(id), peer_urls: list(urls) })])
        }
        ["member", "name", id, name, urls @ ..] => {
            let client_urls = urls.iter().flat_map(|urls| list(urls)).collect();
            let attributes = MemberAttributes { id: id_of(id), name: (*name).to_owned(), client_urls };
            world::commands(vec![Kind::MemberAttributes(attributes)])
        }
        ["put", ..] => world::commands(vec![Kind::Put(kv::put(words))]),
        _ => panic!("no entry {words:?}"),
    }
}

/// A line of the table.
pub(crate) fn show(member: &Member) -> String {
    let name = if member.name.is_empty() { "unstarted" } else { &member.name };
    let rank = if member.is_learner { "learner" } else { "voter" };
    let clients = if member.client_ur_ls.is_empty() {
        String::new()
    } else {
        format!(" clients={}", member.client_ur_ls.join(","))
    };
    format!("{} {name} {rank} {}{clients}", member.id, member.peer_ur_ls.join(","))
}

fn table(world: &World) -> Vec<String> {
    let state = world.state();
    let conf_state = state.conf_state();
    let raft = format!("raft voters={:?} learners={:?}", conf_state.voters, conf_state.learners).replace(", ", ",");
    state.members.list().iter().map(show).chain([raft]).collect()
}

fn id_of(word: &str) -> u64 {
    kv::number(word) as u64
}

fn list(word: &str) -> Vec<String> {
    word.split(',').map(str::to_owned).collect()
}
