//! Which life of each replica is heard: what one had said before it was started again may not be true any more.
//!
//! A life is a number that a replica draws when it opens; every message has the sender's, and the receiver's as far
//! as the sender knows it. Whoever hears of a life that it does not know asks, with a number that it has drawn, and
//! believes the answer with that number: nothing that was sent earlier can have it.

use super::{
    Replica,
    message::{Body, Message},
};
use crate::disk::Disk;
use virga_ebpf::header::NodeId;

/// This replica's life, and those of the others.
#[derive(Debug)]
pub(super) struct Lives {
    pub(super) own: u64,
    others: Vec<Other>,
}

#[derive(Debug)]
struct Other {
    node: NodeId,
    life: Option<u64>,
    asked: Option<u64>,
}

impl Lives {
    pub(super) fn new(own: u64, others: &[NodeId]) -> Self {
        let other = |node: &NodeId| Other {
            node: *node,
            life: None,
            asked: None,
        };
        Self {
            own,
            others: others.iter().map(other).collect(),
        }
    }

    fn of(&mut self, node: NodeId) -> Option<&mut Other> {
        self.others.iter_mut().find(|other| other.node == node)
    }
}

impl<D: Disk> Replica<D> {
    /// Whether a message is of the sender's life that is known, and meant for this one.
    pub(super) fn is_of_this_life(&mut self, from: NodeId, message: &Message) -> bool {
        let Some(other) = self.lives.of(from) else {
            return false;
        };
        let is_known = other.life == Some(message.life);
        match message.body {
            Body::Who(number) => {
                self.tell_life(from, Body::Here(number));
                if !is_known {
                    self.ask_life(from);
                }
                false
            }
            Body::Here(number) => {
                if other.asked == Some(number) {
                    other.asked = None;
                    other.life = Some(message.life);
                    if !is_known {
                        self.forget_copy(from);
                        self.try_again();
                    }
                }
                false
            }
            _ if is_known && message.to == self.lives.own => true,
            // One that does not know this life learns of it by the question.
            _ => {
                self.ask_life(from);
                false
            }
        }
    }

    pub(super) fn ask_life(&mut self, of: NodeId) {
        let drawn = self.draw();
        if let Some(other) = self.lives.of(of) {
            let number = *other.asked.get_or_insert(drawn);
            self.tell_life(of, Body::Who(number));
        }
    }

    fn tell_life(&mut self, to: NodeId, body: Body) {
        let message = self.message(0, body);
        self.out.push_back((to, message));
    }

    fn message(&self, to: u64, body: Body) -> Message {
        Message {
            group: self.group.hash,
            life: self.lives.own,
            to,
            epoch: self.promise.epoch,
            body,
        }
    }

    /// Says something to another replica; where its life is not known, asks for that instead.
    pub(super) fn say(&mut self, to: NodeId, body: Body) {
        let life = self.lives.of(to).and_then(|other| other.life);
        match life {
            Some(life) => {
                let message = self.message(life, body);
                self.out.push_back((to, message));
            }
            None => self.ask_life(to),
        }
    }
}
