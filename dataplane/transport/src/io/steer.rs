//! The sockets of a node's workers: all at one address, and the kernel puts each datagram into its
//! owner's.
//!
//! A classic BPF program on the group of sockets (`SO_ATTACH_REUSEPORT_CBPF`) reads the owner off the
//! datagram, as [`crate::Share::owner_of_datagram`] does. It is a hint: a run of datagrams that travel as one
//! is steered by the first of them, and where the kernel refuses the program it spreads sources. Who
//! gets what is another's hands it over.

use crate::share::{FLAGS_AT, SENDER_WORD_AT, SESSION_BYTE_AT};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};
use virga_ebpf::header::Flags;

/// An address that is in use is tried again for so long.
const IN_USE_MAX: Duration = Duration::from_secs(2);
/// And this often.
const IN_USE_PAUSE: Duration = Duration::from_millis(10);

/// Whether the kernel shall be asked to steer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steer {
    /// Yes.
    #[default]
    Kernel,
    /// No: it spreads datagrams by their addresses, and workers hand over what is another's.
    HandOver,
}

/// How datagrams find their worker, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steering {
    /// There is one worker.
    Alone,
    /// The kernel reads the owner off each datagram.
    Kernel,
    /// The kernel spreads sources, and workers hand over: it was asked for no more.
    Unasked,
    /// The same, because the kernel refused the program; what it said.
    Refused(String),
}

impl Steering {
    /// A sentence for whoever operates the node.
    #[must_use]
    pub fn why(&self) -> String {
        match self {
            Self::Alone => "one worker takes all datagrams".into(),
            Self::Kernel => "the kernel puts each datagram into its worker's socket".into(),
            Self::Unasked => "workers hand datagrams over, as asked".into(),
            Self::Refused(error) => format!(
                "workers hand datagrams over: the kernel takes no steering program ({error})"
            ),
        }
    }
}

/// Binds one socket for each of so many workers, in their order, all to one address that nobody else
/// has. With port 0 the first one's port is taken for all.
///
/// # Errors
/// When the address cannot be bound, or the kernel lets sockets share none.
pub fn bind(
    address: SocketAddr,
    workers: usize,
    steer: Steer,
) -> io::Result<(Vec<UdpSocket>, Steering)> {
    // A socket of its own: sockets that share an address share it with any other process of the
    // same user that asks for it, and to one that would share it the kernel gives, for port 0, a port
    // that others share already.
    let first = bind_alone(address)?;
    if workers <= 1 {
        return Ok((vec![first], Steering::Alone));
    }
    sockopt::set_socket_reuseport(&first, true)?;
    let address = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind_shared(address)?);
    }
    let steering = match steer {
        Steer::HandOver => Steering::Unasked,
        Steer::Kernel => match attach(&sockets[0], workers) {
            Ok(()) => Steering::Kernel,
            Err(error) => Steering::Refused(error.to_string()),
        },
    };
    Ok((sockets, steering))
}

/// Waits a little for an address in use: the kernel closes the sockets of a process that was killed only
/// once it has taken its io_uring down, which is after the process is gone.
fn bind_alone(address: SocketAddr) -> io::Result<UdpSocket> {
    let give_up = Instant::now() + IN_USE_MAX;
    loop {
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::sleep(IN_USE_PAUSE);
            }
            bound => return bound,
        }
    }
}

/// Joins a socket that was bound to the address, and lets others share it.
fn bind_shared(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket: OwnedFd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket.into())
}

/// The program's offsets count from the UDP payload's first byte; a load beyond its end gives 0, the
/// first worker, as [`crate::Share::owner_of_datagram`] does.
fn program(workers: usize) -> [libc::sock_filter; 8] {
    let of = |operation: u32, to: usize, (jump_true, jump_false): (u8, u8)| libc::sock_filter {
        code: u16::try_from(operation).unwrap_or(u16::MAX),
        jt: jump_true,
        jf: jump_false,
        k: u32::try_from(to).unwrap_or(u32::MAX),
    };
    let load = |size: u32, at: usize| of(libc::BPF_LD | libc::BPF_ABS | size, at, (0, 0));
    let modulo = || of(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, workers, (0, 0));
    let result = || of(libc::BPF_RET | libc::BPF_A, 0, (0, 0));
    let is_handshake = usize::from(Flags::HANDSHAKE.0);
    [
        load(libc::BPF_B, FLAGS_AT),
        of(
            libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K,
            is_handshake,
            (0, 3),
        ),
        load(libc::BPF_W, SENDER_WORD_AT),
        modulo(),
        result(),
        load(libc::BPF_B, SESSION_BYTE_AT),
        modulo(),
        result(),
    ]
}

#[allow(unsafe_code)]
fn attach(socket: &UdpSocket, workers: usize) -> io::Result<()> {
    let mut program = program(workers);
    let argument = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(u16::MAX),
        filter: program.as_mut_ptr(),
    };
    let bytes = libc::socklen_t::try_from(size_of_val(&argument)).unwrap_or(0);
    // SAFETY: the descriptor is open; the kernel reads `bytes` bytes of a `sock_fprog`, and through it
    // the program's `len` instructions, both of which outlive the call, and writes nothing.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const argument).cast(),
            bytes,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Share;
    use std::collections::HashSet;
    use virga_ebpf::header::{Header, NodeId, SessionId};

    fn group(workers: usize, steer: Steer) -> (Vec<UdpSocket>, Steering) {
        bind("127.0.0.1:0".parse().unwrap(), workers, steer).unwrap()
    }

    /// Which socket the datagram comes out of.
    fn taker(sockets: &[UdpSocket], datagram: &[u8]) -> usize {
        let to = sockets[0].local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(datagram, to).unwrap();
        for socket in sockets {
            socket.set_nonblocking(true).unwrap();
        }
        for _ in 0..2_000 {
            let taken = sockets.iter().position(|s| s.recv(&mut [0; 2_048]).is_ok());
            if let Some(index) = taken {
                return index;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the datagram did not arrive");
    }

    #[test]
    fn the_kernel_finds_the_same_owner_as_the_workers_do() {
        let (sockets, steering) = group(3, Steer::Kernel);
        assert_eq!(steering, Steering::Kernel);
        let share = Share::split(3).next().unwrap();
        for number in 0..24 {
            let session = Header {
                session_id: SessionId(0xabcd_ef00 | number),
                ..Header::default()
            };
            let mut handshake = Header {
                flags: Flags::HANDSHAKE.with(Flags::CONTROL),
                session_id: SessionId(number + 1),
                ..Header::default()
            }
            .encode()
            .to_vec();
            handshake.extend([1, 1, 0, 0]);
            let sender = NodeId(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            handshake.extend(sender.0.to_be_bytes());
            assert_eq!(share.owner_of_datagram(&handshake), share.owner_of(sender));
            for datagram in [&session.encode()[..], &handshake, &handshake[..70]] {
                let owner = usize::from(share.owner_of_datagram(datagram));
                assert_eq!(taker(&sockets, datagram), owner, "{number}");
            }
        }
        assert_eq!(taker(&sockets, b"no"), 0);
    }

    #[test]
    fn an_address_that_another_group_has_is_refused() {
        let (sockets, _) = group(2, Steer::Kernel);
        let taken = sockets[0].local_addr().unwrap();
        assert_eq!(sockets[1].local_addr().unwrap(), taken);
        for workers in [1, 2] {
            let refused = bind(taken, workers, Steer::Kernel).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{workers}");
        }
        drop(sockets);
        assert!(bind(taken, 2, Steer::HandOver).is_ok());
    }

    #[test]
    fn a_group_that_asks_for_any_port_gets_one_that_no_other_group_has() {
        let any = "127.0.0.1:0".parse().unwrap();
        let others: Vec<UdpSocket> = (0..400).map(|_| bind_shared(any).unwrap()).collect();
        let taken = others.iter().map(|socket| socket.local_addr().unwrap());
        let taken: HashSet<SocketAddr> = taken.collect();
        for _ in 0..400 {
            let (sockets, _) = group(2, Steer::HandOver);
            assert!(!taken.contains(&sockets[0].local_addr().unwrap()));
        }
    }
}
