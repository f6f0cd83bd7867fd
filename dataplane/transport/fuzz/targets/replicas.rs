//! Replicas of one log that hear each other late, twice, changed and not at all, and what no replica said: whatever
//! they make of it, each one's log stays as it was written, and what a message says is what it reads as.

use super::disk::Memory;
use arbitrary::Arbitrary;
use virga_ebpf::header::{NodeId, OriginHash};
use virga_state::{
    Link, Log, LogName, Options,
    files::Files,
    format::LogId,
    recover,
    replica::{Group, Replica, Store, log_id, message::Message},
    verify::{self, Depth},
};

#[derive(Arbitrary, Debug)]
enum Op {
    /// Time passes.
    Wait { ms: u16 },
    /// A node does what is due, and so much of what its log asks for.
    Work { node: u8, steps: u8 },
    /// A message arrives, or arrives and stays on its way.
    Deliver { message: u8, stays: bool },
    /// It arrives with bytes of it changed.
    Change { message: u8, at: u8, bytes: Vec<u8> },
    /// It ends there.
    Cut { message: u8, at: u16 },
    /// Nobody hears it.
    Lose { message: u8 },
    /// A message of the node's group that says whatever this says.
    Say {
        from: u8,
        to: u8,
        kind: u8,
        epoch: u8,
        rest: Vec<u8>,
    },
    /// A node appends an event, if it leads.
    Publish { node: u8, bytes: u8 },
    /// A node is started again.
    Restart { node: u8 },
}

const MS: u64 = 1_000_000;
const NODES: u64 = 3;
/// Messages that are on their way.
const POST_MAX: usize = 64;

struct Node {
    id: NodeId,
    disk: Memory,
    log: Log,
    files: Files<Memory>,
    replica: Replica<Memory>,
}

fn name() -> LogName {
    LogName::parse("a/b").expect("a name")
}

fn id() -> LogId {
    log_id(b"net", &name())
}

fn group(node: NodeId) -> Group {
    let nodes: Vec<NodeId> = (1..=NODES).map(NodeId).collect();
    Group::new(node, &nodes).expect("a group")
}

impl Node {
    /// None where its log, or what it promised, does not let it take part.
    fn start(node: NodeId, disk: Memory, now: u64) -> Option<Self> {
        let (state, findings) = recover(&disk, &name(), id()).ok()?;
        let options = Options {
            segment_bytes: 4_096,
            ..Options::default()
        };
        let mut log = Log::new(state, options);
        let mut files = Files::open(disk.clone()).ok()?;
        let mut store = Store {
            log: &mut log,
            files: &mut files,
        };
        let seed = now ^ node.0.rotate_left(32);
        let replica = Replica::open(
            now,
            group(node),
            (&name(), id()),
            &findings,
            seed,
            &mut store,
        );
        Some(Self {
            id: node,
            disk,
            replica: replica.ok()?,
            log,
            files,
        })
    }

    fn with(&mut self, act: impl FnOnce(&mut Replica<Memory>, &mut Store<'_, Memory>)) {
        let mut store = Store {
            log: &mut self.log,
            files: &mut self.files,
        };
        act(&mut self.replica, &mut store);
    }

    fn work(&mut self, now: u64, steps: u8) {
        for _ in 0..steps {
            self.files.step(&mut self.log, now);
        }
        self.with(|replica, store| replica.handle_log(now, store));
        if self.replica.poll_timeout() <= now {
            self.with(|replica, store| replica.handle_timeout(now, store));
        }
    }

    fn hear(&mut self, now: u64, from: NodeId, bytes: &[u8]) {
        if let Ok(message) = Message::parse(bytes) {
            let again = Message::parse(&message.encode());
            assert_eq!(again.as_ref(), Ok(&message));
            self.with(|replica, store| replica.handle(now, from, message, store));
        }
    }

    /// All of the log is as it was written.
    fn check(mut self, now: u64) {
        while self.log.failure().is_none() && self.files.step(&mut self.log, now) {}
        if let Ok(report) = verify::verify(&self.disk, &name(), Depth::Content) {
            assert!(report.flaws.is_empty(), "{:?}", report.flaws);
        }
    }
}

struct Post {
    from: NodeId,
    to: NodeId,
    bytes: Vec<u8>,
}

fn collect(nodes: &mut [Node], post: &mut Vec<Post>) {
    for node in nodes {
        while let Some((to, message)) = node.replica.poll_transmit() {
            let bytes = message.encode();
            if post.len() < POST_MAX {
                let from = node.id;
                post.push(Post { from, to, bytes });
            }
        }
        while let Some(event) = node.replica.poll() {
            assert!(!format!("{event:?}").is_empty());
        }
    }
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(ops) = super::read::<Vec<Op>>(input) else {
        return;
    };
    let mut now = MS;
    let start = |node| Node::start(NodeId(node), Memory::default(), MS).expect("a new log opens");
    let mut nodes: Vec<Node> = (1..=NODES).map(start).collect();
    let mut post: Vec<Post> = Vec::new();
    for op in ops.into_iter().take(256) {
        collect(&mut nodes, &mut post);
        let count = nodes.len();
        let place = |number: u8| usize::from(number) % count;
        let taken = |post: &mut Vec<Post>, message: u8| {
            let at = usize::from(message).checked_rem(post.len())?;
            Some(post.remove(at))
        };
        let deliver = |nodes: &mut Vec<Node>, post: &Post| {
            if let Some(node) = nodes.iter_mut().find(|node| node.id == post.to) {
                node.hear(now, post.from, &post.bytes);
            }
        };
        match op {
            Op::Wait { ms } => now += u64::from(ms) * MS,
            Op::Work { node, steps } => nodes[place(node)].work(now, steps),
            Op::Deliver { message, stays } => {
                if let Some(one) = taken(&mut post, message) {
                    deliver(&mut nodes, &one);
                    if stays {
                        post.push(one);
                    }
                }
            }
            Op::Change { message, at, bytes } => {
                if let Some(mut one) = taken(&mut post, message) {
                    let places = one.bytes.iter_mut().skip(usize::from(at));
                    places.zip(bytes).for_each(|(there, byte)| *there = byte);
                    deliver(&mut nodes, &one);
                }
            }
            Op::Cut { message, at } => {
                if let Some(mut one) = taken(&mut post, message) {
                    one.bytes.truncate(usize::from(at));
                    deliver(&mut nodes, &one);
                }
            }
            Op::Lose { message } => drop(taken(&mut post, message)),
            Op::Say {
                from,
                to,
                kind,
                epoch,
                rest,
            } => {
                let (from, to) = (nodes[place(from)].id, nodes[place(to)].id);
                // What that one said last has the group and the lives right.
                let before = post
                    .iter()
                    .rev()
                    .find(|one| one.from == from && one.to == to);
                if let Some(before) = before {
                    let mut bytes = before.bytes.clone();
                    bytes.truncate(26);
                    bytes[1] = kind;
                    bytes.extend(u64::from(epoch).to_be_bytes());
                    bytes.extend(rest);
                    deliver(&mut nodes, &Post { from, to, bytes });
                }
            }
            Op::Publish { node, bytes } => {
                let node = &mut nodes[place(node)];
                let link = Link {
                    entity: OriginHash(1),
                    observed: 0,
                    parent: 0,
                };
                if node.replica.takes_events(&node.log) {
                    // Where it has no room, nothing is promised.
                    let _offset = node.log.append(now, &link, &vec![7; usize::from(bytes)]);
                }
            }
            Op::Restart { node } => {
                let node = nodes.remove(place(node));
                let (id, disk) = (node.id, node.disk.clone());
                drop(node);
                now += 1;
                match Node::start(id, disk, now) {
                    Some(node) => nodes.push(node),
                    None if nodes.is_empty() => return,
                    None => {}
                }
            }
        }
    }
    nodes.into_iter().for_each(|node| node.check(now));
}
