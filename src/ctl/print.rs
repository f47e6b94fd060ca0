//! How answers are printed: for people, as fields, as JSON, as the message itself, and a few of them as a table.
//!
//! etcdctl does not print every answer in every format. What it refuses is refused here in the same words.

use std::fmt::Display;
use std::io::{self, Write};

use prost::Message;

use super::failure::Failure;
use super::go;
use crate::pb::etcdserverpb::ResponseHeader;
use crate::pb::mvccpb::KeyValue;

/// The format of `--write-out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Simple,
    Fields,
    Json,
    Table,
    Protobuf,
}

impl Format {
    /// By its name.
    pub(super) fn parse(name: &str) -> Result<Format, Failure> {
        match name {
            "simple" => Ok(Format::Simple),
            "fields" => Ok(Format::Fields),
            "json" => Ok(Format::Json),
            "table" => Ok(Format::Table),
            "protobuf" => Ok(Format::Protobuf),
            _ => Err(Failure::bad_feature("unsupported output format")),
        }
    }

    /// This answer is not printed in this format.
    pub(super) fn unsupported(self) -> Failure {
        Failure::bad_feature(format!("{} not supported as output format", format!("{self:?}").to_lowercase()))
    }

    /// What is the same for all answers: JSON and the message itself. Other formats are refused.
    pub(super) fn message(self, name: &str, reply: &impl Message) -> Result<(), Failure> {
        match self {
            Format::Json => print(&(go::json(name, reply) + "\n")),
            Format::Protobuf => print_bytes(&reply.encode_to_vec()),
            other => Err(other.unsupported()),
        }
    }

    /// An answer that says no more than that it was done.
    pub(super) fn done(
        self,
        name: &str,
        reply: &impl Message,
        header: Option<&ResponseHeader>,
        said: impl Display,
    ) -> Result<(), Failure> {
        match self {
            Format::Simple => print(&format!("{said}\n")),
            Format::Fields => {
                let mut fields = Fields::default();
                fields.header(header);
                fields.print()
            }
            other => other.message(name, reply),
        }
    }
}

/// Writes to stdout. Whoever read it and went away has seen enough.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(0)),
        Err(error) => Err(Failure::error(error.to_string())),
        Ok(()) => Ok(()),
    }
}

/// The same of text.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Keys and values for people: raw, or as `\x6b` with `--hex`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Simple {
    pub(super) hex: bool,
    pub(super) value_only: bool,
}

impl Simple {
    /// A key on a line, and its value on the next.
    pub(super) fn kv(&self, out: &mut Vec<u8>, kv: &KeyValue) {
        if !self.value_only {
            self.line(out, &kv.key);
        }
        self.line(out, &kv.value);
    }

    fn line(&self, out: &mut Vec<u8>, bytes: &[u8]) {
        if self.hex {
            out.extend(bytes.iter().flat_map(|byte| format!("\\x{byte:02x}").into_bytes()));
        } else {
            out.extend(bytes);
        }
        out.push(b'\n');
    }
}

/// Lines of the form `"Name" : value`.
#[derive(Default)]
pub(super) struct Fields(String);

impl Fields {
    /// A value as it is.
    pub(super) fn raw(&mut self, name: &str, value: impl Display) {
        self.0.push_str(&format!("\"{name}\" : {value}\n"));
    }

    /// A value in quotes.
    pub(super) fn quoted(&mut self, name: &str, value: &[u8]) {
        self.raw(name, go::quote(value));
    }

    /// An empty line.
    pub(super) fn gap(&mut self) {
        self.0.push('\n');
    }

    /// Who answered.
    pub(super) fn header(&mut self, header: Option<&ResponseHeader>) {
        let header = header.copied().unwrap_or_default();
        self.raw("ClusterID", header.cluster_id);
        self.raw("MemberID", header.member_id);
        self.raw("Revision", header.revision);
        self.raw("RaftTerm", header.raft_term);
    }

    /// A key and what belongs to it; names begin with `prefix`.
    pub(super) fn kv(&mut self, prefix: &str, kv: &KeyValue) {
        self.quoted(&format!("{prefix}Key"), &kv.key);
        self.raw(&format!("{prefix}CreateRevision"), kv.create_revision);
        self.raw(&format!("{prefix}ModRevision"), kv.mod_revision);
        self.raw(&format!("{prefix}Version"), kv.version);
        self.quoted(&format!("{prefix}Value"), &kv.value);
        self.raw(&format!("{prefix}Lease"), kv.lease);
    }

    /// Prints them.
    pub(super) fn print(&self) -> Result<(), Failure> {
        print(&self.0)
    }
}

/// Cells wider than this are broken at spaces.
const CELL_MAX: usize = 30;

/// A table as etcd's tools draw it: heads in the middle, cells to the right.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<Vec<String>>> = rows.iter().map(|row| row.iter().map(|cell| broken(cell)).collect()).collect();
    let widest = |column: usize| {
        let cells = cells.iter().flat_map(|row| row[column].iter().map(|line| line.chars().count()));
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(widest).collect();
    let rule: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect::<String>() + "+\n";
    let centred: String = heads.iter().zip(&widths).map(|(head, width)| format!("| {head:^width$} ")).collect();
    let mut out = format!("{rule}{centred}|\n{rule}");
    for row in &cells {
        for line in 0..row.iter().map(Vec::len).max().unwrap_or(0) {
            for (cell, width) in row.iter().zip(&widths) {
                out.push_str(&format!("| {:>width$} ", cell.get(line).map_or("", String::as_str)));
            }
            out.push_str("|\n");
        }
    }
    out + &rule
}

fn broken(cell: &str) -> Vec<String> {
    let longest = cell.split(' ').map(|word| word.chars().count()).max().unwrap_or(0).max(CELL_MAX);
    let mut lines: Vec<String> = vec![String::new()];
    // A space at the end is one that etcd's tools print, too.
    for word in cell.split(' ') {
        let last = lines.last_mut().expect("there is one");
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= longest {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_look_as_etcds_tools_draw_them() {
        let wanted = "\
+-----------------+-----------+
|    ENDPOINT     |   TOOK    |
+-----------------+-----------+
| 127.0.0.1:18379 | 683.046µs |
+-----------------+-----------+
";
        assert_eq!(table(&["ENDPOINT", "TOOK"], &[vec!["127.0.0.1:18379".into(), "683.046µs".into()]]), wanted);
        assert_eq!(broken("http://10.0.0.1:2379, http://10.0.0.2:2379").len(), 2);
    }
}
