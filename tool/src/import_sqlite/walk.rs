//! Goes through all rows of the file, a batch at a time.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    error::Failure,
    item::Item,
    source::{BATCH, Decoded, Row, Source},
    table::Table,
};

/// What is noted of rows that cannot be decoded: no more of them.
const MOST_NOTED: usize = 20;

/// How many of a table's rows were carried over, left behind or not decoded.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub rows: u64,
    pub carried: u64,
    /// The store's own, which a new store makes itself.
    pub own: u64,
    /// Said again by a later row.
    pub repeated: u64,
    /// What is left behind, and why.
    pub left: BTreeMap<&'static str, u64>,
    pub undecodable: u64,
    /// The first of them, by `rowid`.
    pub undecodable_rows: Vec<i64>,
}

/// The rows of one table.
pub struct Walk<'a> {
    source: &'a Source,
    table: Table,
    after: Option<i64>,
    pub tally: Tally,
}

impl<'a> Walk<'a> {
    pub fn new(source: &'a Source, table: Table) -> Self {
        Self { source, table, after: Some(i64::MIN), tally: Tally::default() }
    }

    /// The next values; `None` behind the last ones.
    pub fn next(&mut self) -> Result<Option<Vec<Item>>, Failure> {
        let Some(after) = self.after else { return Ok(None) };
        // Of several rows of a small table that say the same one counts.
        let rows =
            if self.is_small() { self.all()? } else { self.source.rows(self.table, after)? };
        let is_last = rows.len() != BATCH || self.is_small();
        self.after = rows.last().map(|row| row.id).filter(|_| !is_last);
        let items = rows.iter().filter_map(|row| self.decode(row)).collect();
        let items = self.without_repetitions(items);
        self.tally.carried += items.len() as u64;
        Ok(Some(items))
    }

    fn is_small(&self) -> bool {
        matches!(self.table, Table::KeyRequests | Table::SecretsBefore17 | Table::Secrets)
    }

    fn all(&self) -> Result<Vec<Row>, Failure> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map_or(i64::MIN, |row: &Row| row.id);
            let rows = self.source.rows(self.table, after)?;
            if rows.is_empty() {
                return Ok(all);
            }
            all.extend(rows);
        }
    }

    fn decode(&mut self, row: &Row) -> Option<Item> {
        let tally = &mut self.tally;
        tally.rows += 1;
        let dropped = self.table.dropped_before();
        if let Some((_, why)) = dropped.filter(|(version, _)| self.source.version < *version) {
            *tally.left.entry(why).or_default() += 1;
            return None;
        }
        match self.source.decode(self.table, row) {
            Some(Decoded::Item(item)) => return Some(item),
            Some(Decoded::Own) => tally.own += 1,
            Some(Decoded::Left(why)) => *tally.left.entry(why).or_default() += 1,
            None => {
                tally.undecodable += 1;
                if tally.undecodable_rows.len() < MOST_NOTED {
                    tally.undecodable_rows.push(row.id);
                }
            }
        }
        None
    }

    /// Of several requests for the same key, and of equal secrets, the last one counts.
    fn without_repetitions(&mut self, items: Vec<Item>) -> Vec<Item> {
        if !self.is_small() {
            return items;
        }
        let last: HashMap<String, usize> =
            items.iter().enumerate().map(|(at, item)| (identity(item), at)).collect();
        let last: HashSet<usize> = last.into_values().collect();
        self.tally.repeated += (items.len() - last.len()) as u64;
        let kept = items.into_iter().enumerate().filter(|(at, _)| last.contains(at));
        kept.map(|(_, item)| item).collect()
    }
}

fn identity(item: &Item) -> String {
    match item {
        Item::KeyRequest(request) => request.info.as_key(),
        Item::Secret(secret) => format!("{}\0{}", secret.secret_name, secret.secret.as_str()),
        _ => String::new(),
    }
}
