//! Several indexes read one document in one walk.
//!
//! A [`KeyPlan`] is made of all definitions whose keys are asked for together. Their paths, and those of their
//! filters, make up one tree, and the walk of a document follows the tree: what no path leads to is checked and passed
//! over, what one leads to is encoded as it is read, into [`Extract`], once for all indexes. Keys are put together
//! from these pieces, and filters compare them. Nothing is allocated for an entry once the buffers have grown.
//!
//! Invariants: the paths below a node of the tree have consecutive numbers; after a walk each path has its values in
//! the order of the array, of the last of duplicate members alone.

use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::collate;
use super::definition::{IndexDefinition, IndexKind};
use super::document::{DocumentError, Pass, Place, ValueSeed, pass_scalars, read_slowly};
use super::evaluate::{DOCUMENT_KEYS_MAX, KEY_BYTES_MAX, KeyList, Part};
use super::filter::{Expr, Filter};
use super::json;
use super::judge::holds;
use super::path::{KeyPath, Step};

/// What [`Extract`] keeps of its memory from one document to the next.
const KEPT_BYTES: usize = 1 << 20;
const KEPT_VALUES: usize = KEPT_BYTES / 64;

/// How the keys of several indexes are made of a document.
#[derive(Debug, Default)]
pub struct KeyPlan {
    root: Node,
    indexes: Vec<PlannedIndex>,
}

#[derive(Debug)]
struct PlannedIndex {
    /// Number of each part's path; none of a primary index.
    parts: Option<Vec<usize>>,
    /// Number of the path that has a `[]`.
    array: Option<usize>,
    filter: Option<Expr<usize>>,
}

/// A place in documents that paths lead to or through.
#[derive(Debug, Default)]
struct Node {
    /// Numbers of the paths that end here or below.
    paths: Range<usize>,
    /// A path ends here: the first of `paths`.
    ends: bool,
    /// One value is asked for by several: its own path or those of its elements, each in two ways.
    is_shared: bool,
    /// In the order of their tags.
    members: Vec<Member>,
    elements: Vec<(usize, Node)>,
    each: Option<Box<Node>>,
}

#[derive(Debug)]
struct Member {
    tag: u64,
    name: String,
    node: Node,
}

/// The encoded values that paths have in a document. Made to be used again for the next one.
#[derive(Debug, Default)]
pub struct Extract {
    bytes: Vec<u8>,
    values: Vec<Values>,
    /// Where the reader puts texts together.
    scratch: String,
}

/// The values of one path.
#[derive(Debug, Default)]
struct Values {
    found: Vec<Piece>,
    /// There were more elements than a document may have keys.
    too_many: bool,
}

/// One encoded value.
#[derive(Debug, Clone, Copy)]
enum Piece {
    Missing,
    Whole {
        start: usize,
        end: usize,
    },
    /// The beginning of one that is too long for a key.
    Cut {
        start: usize,
        end: usize,
    },
}

/// What tells most names apart: their lengths, first and last bytes.
fn tag(name: &[u8]) -> u64 {
    let (Some(first), Some(last)) = (name.first(), name.last()) else { return 0 };
    (name.len() as u64) << 16 | u64::from(*first) << 8 | u64::from(*last)
}

fn find<'m>(members: &'m [Member], name: &str) -> Option<&'m Node> {
    let tag = tag(name.as_bytes());
    let rest = members.get(members.partition_point(|member| member.tag < tag)..)?;
    let found = rest.iter().take_while(|member| member.tag == tag).find(|member| member.name == name);
    found.map(|member| &member.node)
}

impl Node {
    fn add(&mut self, steps: &[Step]) {
        let Some((step, rest)) = steps.split_first() else {
            self.ends = true;
            return;
        };
        let child = match step {
            Step::Member(name) => {
                if find(&self.members, name).is_none() {
                    let tag = tag(name.as_bytes());
                    let place = self.members.partition_point(|member| member.tag < tag);
                    self.members.insert(place, Member { tag, name: name.clone(), node: Self::default() });
                }
                self.members.iter_mut().find(|member| member.name == *name).map(|member| &mut member.node)
            }
            Step::Element(number) => {
                let number = *number as usize;
                if !self.elements.iter().any(|(there, _)| *there == number) {
                    self.elements.push((number, Self::default()));
                }
                self.elements.iter_mut().find(|(there, _)| *there == number).map(|(_, child)| child)
            }
            Step::Each => Some(&mut **self.each.get_or_insert_default()),
        };
        if let Some(child) = child {
            child.add(rest);
        }
    }

    fn children(&mut self) -> impl Iterator<Item = &mut Self> {
        let members = self.members.iter_mut().map(|member| &mut member.node);
        let elements = self.elements.iter_mut().map(|(_, child)| child);
        members.chain(elements).chain(self.each.as_deref_mut())
    }

    /// Gives the paths from here on their numbers, from `first` on, once there are all of them.
    fn number(&mut self, first: usize) -> usize {
        let after = first + usize::from(self.ends);
        let end = self.children().fold(after, |next, child| child.number(next));
        self.paths = first..end;
        self.is_shared =
            self.ends && self.children().next().is_some() || self.each.is_some() && !self.elements.is_empty();
        end
    }

    fn number_of(&self, steps: &[Step]) -> usize {
        let Some((step, rest)) = steps.split_first() else { return self.paths.start };
        let child = match step {
            Step::Member(name) => find(&self.members, name),
            Step::Element(number) => {
                let number = *number as usize;
                self.elements.iter().find(|(there, _)| *there == number).map(|(_, child)| child)
            }
            Step::Each => self.each.as_deref(),
        };
        child.map_or(usize::MAX, |child| child.number_of(rest))
    }
}

impl KeyPlan {
    /// A plan for these indexes, which are told by their place among them.
    pub fn new<'i>(indexes: impl IntoIterator<Item = &'i IndexDefinition>) -> Self {
        let indexes: Vec<&IndexDefinition> = indexes.into_iter().collect();
        let mut root = Node::default();
        for definition in &indexes {
            if let IndexKind::Secondary { paths } = definition.kind() {
                for path in paths {
                    root.add(path.steps());
                }
            }
            for path in definition.filter().map(Filter::paths).unwrap_or_default() {
                root.add(path.steps());
            }
        }
        root.number(0);
        let planned = indexes.iter().map(|definition| {
            let number = |path: &KeyPath| root.number_of(path.steps());
            let (parts, array) = match definition.kind() {
                IndexKind::Primary => (None, None),
                IndexKind::Secondary { paths } => {
                    let array = paths.iter().find(|path| path.is_array());
                    (Some(paths.iter().map(number).collect()), array.map(number))
                }
            };
            let filter = definition.filter().map(|filter| filter.0.map(&mut |path| number(path)));
            PlannedIndex { parts, array, filter }
        });
        let indexes = planned.collect();
        Self { root, indexes }
    }

    /// Reads what the indexes need of a document, and checks all of it.
    pub fn read(&self, text: &[u8], into: &mut Extract) -> Result<(), DocumentError> {
        into.begin(self.root.paths.len());
        let text = std::str::from_utf8(text)?;
        let mut scratch = std::mem::take(&mut into.scratch);
        let walk = Walk { node: &self.root, into, place: Place::CHECKED, is_element: false };
        let read = json::read(text, &mut scratch, walk);
        scratch.shrink_to(KEPT_BYTES);
        into.scratch = scratch;
        if read.is_ok() {
            return Ok(());
        }
        into.begin(self.root.paths.len());
        read_slowly(text, Walk { node: &self.root, into, place: Place::TOP, is_element: false })
    }

    /// The same of a document that was read already.
    pub fn read_value(&self, document: &Value, into: &mut Extract) {
        into.begin(self.root.paths.len());
        into.take(&self.root, document, false);
    }

    /// Adds the keys of the document that was read to `out`, where they stand in order with those already there; a
    /// key that is there already is not added again.
    pub fn keys(&self, index: usize, id: &str, read: &Extract, out: &mut KeyList) {
        let Some(index) = self.indexes.get(index) else { return };
        if let Some(filter) = &index.filter
            && holds(filter, read, out) != Some(true)
        {
            return;
        }
        match &index.parts {
            None => out.push_id(id),
            Some(paths) => composite_keys(paths, index.array, read, out),
        }
        out.sort();
    }
}

fn composite_keys(paths: &[usize], array: Option<usize>, read: &Extract, out: &mut KeyList) {
    let (count, too_many) = array.map_or((0, false), |path| read.count(path));
    if too_many {
        out.leave_out();
    }
    for element in 0..count.max(1) {
        let of_array = |path: usize| if array == Some(path) { element } else { 0 };
        out.push_parts(paths.iter().map(|path| read.piece(*path, of_array(*path))));
    }
}

impl Extract {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the last document, of which a plan without paths is left nothing.
    fn begin(&mut self, paths: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.values.resize_with(paths, Values::default);
        for values in &mut self.values {
            values.found.clear();
            values.found.shrink_to(KEPT_VALUES);
            values.too_many = false;
        }
    }

    pub(super) fn piece(&self, path: usize, element: usize) -> Part<'_> {
        let found = self.values.get(path).and_then(|values| values.found.get(element));
        match found {
            None | Some(Piece::Missing) => Part::Missing,
            Some(Piece::Whole { start, end }) => {
                Part::Whole(self.bytes.get(*start..*end).unwrap_or_default())
            }
            Some(Piece::Cut { start, end }) => Part::Cut(self.bytes.get(*start..*end).unwrap_or_default()),
        }
    }

    /// Number of values of a path, and whether there were more than a document may have.
    pub(super) fn count(&self, path: usize) -> (usize, bool) {
        self.values.get(path).map_or((0, false), |values| (values.found.len(), values.too_many))
    }

    fn of(&mut self, paths: &Range<usize>) -> &mut [Values] {
        self.values.get_mut(paths.clone()).unwrap_or_default()
    }

    /// An earlier member of the same name counts no more.
    fn forget(&mut self, paths: &Range<usize>, is_element: bool) {
        for values in self.of(paths).iter_mut().filter(|values| !values.found.is_empty()) {
            if !is_element {
                values.found.clear();
                values.too_many = false;
            } else if let Some(last) = values.found.last_mut() {
                *last = Piece::Missing;
            }
        }
    }

    /// Makes room for one more element. `false` where there are too many.
    fn begin_element(&mut self, paths: &Range<usize>) -> bool {
        let mut has_room = true;
        for values in self.of(paths) {
            if values.found.len() == DOCUMENT_KEYS_MAX {
                values.too_many = true;
                has_room = false;
            } else {
                values.found.push(Piece::Missing);
            }
        }
        has_room
    }

    /// Takes the bytes from `start` on as the value of a path.
    fn put(&mut self, path: usize, start: usize, is_element: bool) {
        let length = self.bytes.len() - start;
        let piece = if length == 0 || length > KEY_BYTES_MAX {
            self.bytes.truncate(start + length.min(KEY_BYTES_MAX));
            Piece::Cut { start, end: self.bytes.len() }
        } else {
            Piece::Whole { start, end: self.bytes.len() }
        };
        let Some(values) = self.values.get_mut(path) else { return };
        match values.found.last_mut() {
            Some(last) if is_element => *last = piece,
            _ => values.found.push(piece),
        }
    }

    /// Takes what the paths of a node lead to from a value.
    fn take(&mut self, node: &Node, value: &Value, is_element: bool) {
        if node.ends {
            let start = self.bytes.len();
            // What cannot be encoded leaves no bytes.
            let _ = collate::encode_value(value, &mut self.bytes);
            self.put(node.paths.start, start, is_element);
        }
        match value {
            Value::Object(members) => {
                for Member { name, node, .. } in &node.members {
                    if let Some(member) = members.get(name) {
                        self.take(node, member, is_element);
                    }
                }
            }
            Value::Array(elements) => {
                for (number, child) in &node.elements {
                    if let Some(element) = elements.get(*number) {
                        self.take(child, element, is_element);
                    }
                }
                if let Some(child) = &node.each {
                    for element in elements {
                        if !self.begin_element(&child.paths) {
                            break;
                        }
                        self.take(child, element, true);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Reads a value that paths lead to.
struct Walk<'p, 'e> {
    node: &'p Node,
    into: &'e mut Extract,
    place: Place,
    /// Within an element of a `[]`, of which each path has one value.
    is_element: bool,
}

impl<'d> DeserializeSeed<'d> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'d>>(self, reader: D) -> Result<(), D::Error> {
        let Self { node, into, place, is_element } = self;
        if node.is_shared {
            let value = ValueSeed { place }.deserialize(reader)?;
            into.take(node, &value, is_element);
            return Ok(());
        }
        if node.ends {
            let start = into.bytes.len();
            reader.deserialize_any(Encode { out: &mut into.bytes, start, place })?;
            into.put(node.paths.start, start, is_element);
            return Ok(());
        }
        reader.deserialize_any(Self { node, into, place, is_element })
    }
}

impl<'d> Visitor<'d> for Walk<'_, '_> {
    type Value = ();

    pass_scalars!();

    fn visit_seq<A: SeqAccess<'d>>(self, mut elements: A) -> Result<(), A::Error> {
        let Self { node, into, is_element, .. } = self;
        let place = self.place.within()?;
        let mut number = 0;
        loop {
            let one = || node.elements.iter().find(|(wanted, _)| *wanted == number).map(|(_, child)| child);
            let read = match (node.each.as_deref(), one()) {
                (Some(node), _) => elements.next_element_seed(Each { node, into, place })?,
                (None, Some(node)) => elements.next_element_seed(Walk { node, into, place, is_element })?,
                (None, None) => elements.next_element_seed(Pass { place })?,
            };
            if read.is_none() {
                return Ok(());
            }
            number += 1;
        }
    }

    fn visit_map<A: MapAccess<'d>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { node, into, is_element, .. } = self;
        let place = self.place.within()?;
        while let Some(child) = members.next_key_seed(Name(&node.members))? {
            match child {
                Some(node) => {
                    into.forget(&node.paths, is_element);
                    members.next_value_seed(Walk { node, into, place, is_element })?;
                }
                None => members.next_value_seed(Pass { place })?,
            }
        }
        Ok(())
    }
}

/// Reads an element of a `[]`.
struct Each<'p, 'e> {
    node: &'p Node,
    into: &'e mut Extract,
    place: Place,
}

impl<'d> DeserializeSeed<'d> for Each<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'d>>(self, reader: D) -> Result<(), D::Error> {
        let Self { node, into, place } = self;
        if into.begin_element(&node.paths) {
            Walk { node, into, place, is_element: true }.deserialize(reader)
        } else {
            Pass { place }.deserialize(reader)
        }
    }
}

/// Reads a member's name and finds who asks for it.
struct Name<'p>(&'p [Member]);

impl<'p, 'd> DeserializeSeed<'d> for Name<'p> {
    type Value = Option<&'p Node>;

    fn deserialize<D: Deserializer<'d>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Name<'p> {
    type Value = Option<&'p Node>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(find(self.0, name))
    }
}

/// Encodes a value as it is read. Beyond the longest key only what a comparison may need is kept.
struct Encode<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    place: Place,
}

impl Encode<'_> {
    fn is_full(&self) -> bool {
        self.out.len() - self.start > KEY_BYTES_MAX
    }
}

impl<'d> DeserializeSeed<'d> for Encode<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'d>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'d> Visitor<'d> for Encode<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.out.push(collate::NULL);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.out.push(if value { collate::TRUE } else { collate::FALSE });
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        if !self.is_full() {
            collate::encode_integer(value.into(), self.out);
        }
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        if !self.is_full() {
            collate::encode_integer(value.into(), self.out);
        }
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        if !self.is_full() {
            collate::encode_double(value, self.out);
        }
        Ok(())
    }

    fn visit_borrowed_str<E>(self, value: &'d str) -> Result<(), E> {
        // As it stands in the document, where control characters are escaped.
        if !self.is_full() {
            collate::encode_plain(value, self.out);
        }
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        if !self.is_full() {
            collate::encode_str(value, self.out);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'d>>(self, mut elements: A) -> Result<(), A::Error> {
        let Self { out, start, .. } = self;
        let place = self.place.within()?;
        out.push(collate::ARRAY);
        loop {
            // The room of what is already too long serves the next element.
            out.truncate(start + KEY_BYTES_MAX + 1);
            if elements.next_element_seed(Encode { out, start, place })?.is_none() {
                out.push(collate::END);
                return Ok(());
            }
        }
    }

    fn visit_map<A: MapAccess<'d>>(self, members: A) -> Result<(), A::Error> {
        // Its members are encoded in the order of their names, which is known at its end.
        let value = ValueSeed { place: self.place }.visit_map(members)?;
        collate::encode_value(&value, self.out).map_err(A::Error::custom)
    }
}
