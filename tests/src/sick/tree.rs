//! What a sick file system holds, and the kernel's protocol for it: requests in, replies out. `fuse(4)`, linux/fuse.h.

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;

pub const MAX_WRITE_BYTES: usize = 128 * 1024;

const HEADER_BYTES: usize = 40;
const REPLY_BYTES: usize = 16;
const ROOT: u64 = 1;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const KIND: u32 = 0o170_000;

/// What the kernel asks for, by its numbers.
mod code {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const RENAME2: u32 = 45;
    pub const SYNCFS: u32 = 50;
}

#[derive(Debug)]
pub struct Request {
    code: u32,
    unique: u64,
    node: u64,
    uid: u32,
    gid: u32,
    body: Vec<u8>,
}

impl Request {
    pub fn parse(bytes: &[u8]) -> Self {
        Self {
            code: u32_at(bytes, 4),
            unique: u64_at(bytes, 8),
            node: u64_at(bytes, 16),
            uid: u32_at(bytes, 24),
            gid: u32_at(bytes, 28),
            body: bytes.get(HEADER_BYTES..).unwrap_or_default().to_vec(),
        }
    }

    pub fn wants_answer(&self) -> bool {
        !matches!(self.code, code::FORGET | code::BATCH_FORGET | code::INTERRUPT | code::INIT | code::DESTROY)
    }

    pub fn changes(&self) -> bool {
        matches!(
            self.code,
            code::SETATTR
                | code::SYMLINK
                | code::MKNOD
                | code::LINK
                | code::MKDIR
                | code::UNLINK
                | code::RMDIR
                | code::RENAME
                | code::RENAME2
                | code::WRITE
                | code::CREATE
                | code::FSYNC
                | code::SYNCFS
        )
    }

    fn names(&self, from: usize) -> impl Iterator<Item = Vec<u8>> {
        self.body.get(from..).unwrap_or_default().split(|byte| *byte == 0).map(<[u8]>::to_vec)
    }

    fn name(&self, from: usize) -> Vec<u8> {
        self.names(from).next().unwrap_or_default()
    }
}

#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<u64, Node>,
    last: u64,
}

#[derive(Debug, Default)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    content: Vec<u8>,
    entries: BTreeMap<Vec<u8>, u64>,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node { mode: DIRECTORY | 0o755, ..Node::default() };
        Self { nodes: HashMap::from([(ROOT, root)]), last: ROOT }
    }
}

type Outcome = Result<Vec<u8>, Errno>;

impl Tree {
    /// The reply; None where the kernel wants none. `refused` is answered to whatever is asked.
    pub fn answer(&mut self, request: &Request, refused: Option<i32>) -> Option<Vec<u8>> {
        if matches!(request.code, code::FORGET | code::BATCH_FORGET | code::INTERRUPT) {
            return None;
        }
        let outcome = match refused {
            Some(errno) => Err(Errno::from_raw_os_error(errno)),
            None => self.done(request),
        };
        let (error, body) = match outcome {
            Ok(body) => (0, body),
            Err(errno) => (-errno.raw_os_error(), Vec::new()),
        };
        let mut reply = Vec::with_capacity(REPLY_BYTES + body.len());
        push32(&mut reply, (REPLY_BYTES + body.len()) as u32);
        reply.extend_from_slice(&error.to_ne_bytes());
        push64(&mut reply, request.unique);
        reply.extend_from_slice(&body);
        Some(reply)
    }

    fn done(&mut self, request: &Request) -> Outcome {
        let body = &request.body;
        match request.code {
            code::INIT => Ok(init(u32_at(body, 8))),
            code::LOOKUP => {
                let found = self.node(request.node)?.entries.get(&request.name(0)).copied();
                self.entry(found.ok_or(Errno::NOENT)?)
            }
            code::GETATTR => self.attributes_now(request.node),
            code::SETATTR => {
                let node = self.node_mut(request.node)?;
                let valid = u32_at(body, 0);
                if valid & 1 != 0 {
                    node.mode = node.mode & KIND | u32_at(body, 68) & !KIND;
                }
                if valid & 2 != 0 {
                    node.uid = u32_at(body, 76);
                }
                if valid & 4 != 0 {
                    node.gid = u32_at(body, 80);
                }
                if valid & 8 != 0 {
                    node.content.resize(u64_at(body, 16) as usize, 0);
                }
                self.attributes_now(request.node)
            }
            code::MKDIR => {
                let made = self.make(request, DIRECTORY | u32_at(body, 0) & !KIND, request.name(8))?;
                self.entry(made)
            }
            code::MKNOD => {
                let made = self.make(request, u32_at(body, 0), request.name(16))?;
                self.entry(made)
            }
            code::SYMLINK => {
                let mut names = request.names(0);
                let (name, target) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
                let made = self.make(request, LINK | 0o777, name)?;
                self.node_mut(made)?.content = target;
                self.entry(made)
            }
            code::READLINK => Ok(self.node(request.node)?.content.clone()),
            code::LINK => {
                let (linked, name) = (u64_at(body, 0), request.name(8));
                if self.node(request.node)?.entries.contains_key(&name) {
                    return Err(Errno::EXIST);
                }
                self.node_mut(request.node)?.entries.insert(name, linked);
                self.entry(linked)
            }
            code::CREATE => {
                let made = self.make(request, REGULAR | u32_at(body, 4) & !KIND, request.name(16))?;
                let mut answer = self.entry(made)?;
                answer.extend_from_slice(&opened());
                Ok(answer)
            }
            code::UNLINK | code::RMDIR => {
                let name = request.name(0);
                let at = self.node(request.node)?.entries.get(&name).copied().ok_or(Errno::NOENT)?;
                if !self.node(at)?.entries.is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
                // What is open stays readable: nodes are never taken away.
                self.node_mut(request.node)?.entries.remove(&name);
                Ok(Vec::new())
            }
            code::RENAME | code::RENAME2 => {
                let mut names = request.names(if request.code == code::RENAME { 8 } else { 16 });
                let (from, to) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
                let moved = self.node_mut(request.node)?.entries.remove(&from).ok_or(Errno::NOENT)?;
                self.node_mut(u64_at(body, 0))?.entries.insert(to, moved);
                Ok(Vec::new())
            }
            code::OPEN | code::OPENDIR => Ok(opened()),
            code::READ => {
                let content = &self.node(request.node)?.content;
                let from = (u64_at(body, 8) as usize).min(content.len());
                let to = (from + u32_at(body, 16) as usize).min(content.len());
                Ok(content[from..to].to_vec())
            }
            code::WRITE => {
                let data = body.get(HEADER_BYTES..).unwrap_or_default();
                let content = &mut self.node_mut(request.node)?.content;
                let from = u64_at(body, 8) as usize;
                if content.len() < from + data.len() {
                    content.resize(from + data.len(), 0);
                }
                content[from..from + data.len()].copy_from_slice(data);
                let mut answer = Vec::new();
                push32(&mut answer, data.len() as u32);
                push32(&mut answer, 0);
                Ok(answer)
            }
            code::READDIR => self.listing(request.node, u64_at(body, 8), u32_at(body, 16) as usize),
            code::STATFS => {
                let mut answer = Vec::new();
                for number in [1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19] {
                    push64(&mut answer, number);
                }
                for number in [4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0] {
                    push32(&mut answer, number);
                }
                Ok(answer)
            }
            code::RELEASE
            | code::RELEASEDIR
            | code::FSYNC
            | code::FSYNCDIR
            | code::FLUSH
            | code::SYNCFS
            | code::DESTROY => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        }
    }

    fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(Errno::NOENT)
    }

    fn node_mut(&mut self, number: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(Errno::NOENT)
    }

    fn make(&mut self, request: &Request, mode: u32, name: Vec<u8>) -> Result<u64, Errno> {
        if self.node(request.node)?.entries.contains_key(&name) {
            return Err(Errno::EXIST);
        }
        self.last += 1;
        let node = Node { mode, uid: request.uid, gid: request.gid, ..Node::default() };
        let made = self.last;
        self.nodes.insert(made, node);
        self.node_mut(request.node)?.entries.insert(name, made);
        Ok(made)
    }

    /// fuse_entry_out. Neither names nor attributes may be kept.
    fn entry(&self, number: u64) -> Outcome {
        let mut answer = Vec::new();
        for field in [number, 0, 0, 0, 0] {
            push64(&mut answer, field);
        }
        self.attributes(number, &mut answer)?;
        Ok(answer)
    }

    /// fuse_attr_out.
    fn attributes_now(&self, number: u64) -> Outcome {
        let mut answer = vec![0; 16];
        self.attributes(number, &mut answer)?;
        Ok(answer)
    }

    /// fuse_attr.
    fn attributes(&self, number: u64, into: &mut Vec<u8>) -> Result<(), Errno> {
        let node = self.node(number)?;
        let size = node.content.len() as u64;
        for field in [number, size, size.div_ceil(512), 0, 0, 0] {
            push64(into, field);
        }
        for field in [0, 0, 0, node.mode, 1, node.uid, node.gid, 0, 4096, 0] {
            push32(into, field);
        }
        Ok(())
    }

    /// fuse_dirents, from the offset on.
    fn listing(&self, number: u64, offset: u64, room: usize) -> Outcome {
        let mut answer = Vec::new();
        let entries = self.node(number)?.entries.iter().enumerate().skip(offset as usize);
        for (at, (name, child)) in entries {
            let padded = (24 + name.len()).next_multiple_of(8);
            if answer.len() + padded > room {
                break;
            }
            let begun = answer.len();
            push64(&mut answer, *child);
            push64(&mut answer, at as u64 + 1);
            push32(&mut answer, name.len() as u32);
            push32(&mut answer, self.node(*child)?.mode >> 12);
            answer.extend_from_slice(name);
            answer.resize(begun + padded, 0);
        }
        Ok(answer)
    }
}

/// fuse_init_out of version 7.31.
fn init(readahead: u32) -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    let mut answer = Vec::new();
    for field in [7, 31, readahead, BIG_WRITES, 0, MAX_WRITE_BYTES as u32, 1] {
        push32(&mut answer, field);
    }
    answer.resize(64, 0);
    answer
}

/// fuse_open_out.
fn opened() -> Vec<u8> {
    vec![0; 16]
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn push32(into: &mut Vec<u8>, number: u32) {
    into.extend_from_slice(&number.to_ne_bytes());
}

fn push64(into: &mut Vec<u8>, number: u64) {
    into.extend_from_slice(&number.to_ne_bytes());
}
