//! Programs on interfaces: attached once, pinned, and from then on replaced in place.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::{XdpLink, XdpLinkId},
};

use crate::{cause, doctor};

use super::{NicError, kernel::Interface, mode_name, pin_error, pins::Pins};

/// How often, and how long apart, an interface is tried whose earlier link was just removed.
const RELEASE_ATTEMPTS: u32 = 100;
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// Brings `program` onto an interface. A pinned link of the same mode is updated atomically, so that no
/// packet meets an interface without a program; where there is none, or its interface is gone, a new one
/// is made. Returns its pin.
///
/// # Errors
/// When the kernel refuses, with the likeliest reason and its fix. An interface that takes the program in no other
/// mode than that of its earlier link has it in that one.
pub(super) fn attach(
    pins: &Pins,
    program: &mut Xdp,
    interface: &Interface,
    mode: XdpMode,
) -> Result<PathBuf, NicError> {
    let (name, ifindex) = (&interface.name, interface.ifindex);
    let mut attempts = 1;
    let mut remove = |pin: &Path| {
        attempts = RELEASE_ATTEMPTS;
        fs::remove_file(pin).map_err(|e| pin_error(pin, e))
    };
    // A link keeps the mode that it was made in, and an interface takes one mode at a time.
    let other = other(mode);
    let earlier = pins.link(name, ifindex, mode_name(other));
    let had_other = earlier.exists();
    if had_other {
        remove(&earlier)?;
    }
    let pin = pins.link(name, ifindex, mode_name(mode));
    if pin.exists() {
        if update(program, &pin, interface, mode)? {
            return Ok(pin);
        }
        remove(&pin)?;
    }
    let attached = attach_pinned(program, interface, mode, (&pin, attempts));
    if attached.is_err() && had_other {
        // The first error is the one worth telling.
        let _told = attach_pinned(program, interface, other, (&earlier, RELEASE_ATTEMPTS));
    }
    attached.map(|()| pin)
}

/// The mode that an earlier link may have instead.
pub(super) const fn other(mode: XdpMode) -> XdpMode {
    match mode {
        XdpMode::Skb => XdpMode::Driver,
        _ => XdpMode::Skb,
    }
}

/// Makes a link and its pin.
fn attach_pinned(
    program: &mut Xdp,
    interface: &Interface,
    mode: XdpMode,
    (pin, attempts): (&Path, u32),
) -> Result<(), NicError> {
    let id = attach_anew(program, interface.ifindex, mode, attempts)
        .map_err(|source| explain(interface, mode, source))?;
    let failed = |e| pin_error(pin, std::io::Error::other(e));
    let link = into_fd(program, id).map_err(failed)?;
    let pinned = link.pin(pin);
    pinned.map_err(|e| pin_error(pin, std::io::Error::other(e)))?;
    Ok(())
}

/// The kernel lets go of a link some time after its last pin is removed: until then it is busy.
fn attach_anew(
    program: &mut Xdp,
    ifindex: u32,
    mode: XdpMode,
    attempts: u32,
) -> Result<XdpLinkId, ProgramError> {
    for _ in 1..attempts {
        match program.attach_to_if_index(ifindex, mode) {
            Err(ProgramError::SyscallError(e)) if is_taken(&e.io_error) => {
                std::thread::sleep(RELEASE_PAUSE);
            }
            done => return done,
        }
    }
    program.attach_to_if_index(ifindex, mode)
}

/// EBUSY: another link is there. EEXIST: a program of the other mode is.
fn is_taken(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// True if the link of that pin now runs `program`; false if its interface is gone.
fn update(
    program: &mut Xdp,
    pin: &Path,
    interface: &Interface,
    mode: XdpMode,
) -> Result<bool, NicError> {
    let failed =
        |e: Box<dyn std::error::Error + Send + Sync>| pin_error(pin, std::io::Error::other(e));
    let pinned = PinnedLink::from_pin(pin).map_err(|e| failed(Box::new(e)))?;
    let link = XdpLink::try_from(FdLink::from(pinned)).map_err(|e| failed(Box::new(e)))?;
    match program.attach_to_link(link) {
        // The pin keeps the link; the program's own handle on it may go.
        Ok(id) => into_fd(program, id).map(|_| true).map_err(failed),
        Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOLINK) => {
            Ok(false)
        }
        Err(error) => Err(explain(interface, mode, error)),
    }
}

/// The link as a file descriptor. A link made by netlink, the loader's fallback, would end with this
/// process and is refused.
fn into_fd(
    program: &mut Xdp,
    id: XdpLinkId,
) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    Ok(FdLink::try_from(program.take_link(id)?)?)
}

fn explain(interface: &Interface, mode: XdpMode, source: ProgramError) -> NicError {
    NicError::Attach {
        interface: interface.name.clone(),
        mode: mode_name(mode),
        fix: fix(interface, &source),
        source: Box::new(source),
    }
}

/// The kernel's answer, where it gave one.
pub(super) fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        _ => None,
    }
}

/// What an operator should do about a refused attach. The kernel says little more than EINVAL.
fn fix(interface: &Interface, source: &ProgramError) -> String {
    let name = &interface.name;
    match errno(source) {
        Some(libc::EBUSY | libc::EEXIST) => format!(
            "another XDP program is attached: see `ip link show dev {name}` and `bpftool net`; another \
             node's comes off with `virga node detach NODE`, one without a link with \
             `ip link set dev {name} xdp off`"
        ),
        Some(libc::EPERM | libc::EACCES) => {
            "run as root, or with CAP_NET_ADMIN and CAP_BPF".to_owned()
        }
        Some(libc::EMFILE | libc::ENFILE) => cause::FILES_LIMIT.to_owned(),
        Some(libc::EOPNOTSUPP) if lacks_native(name) => no_native(name),
        _ if interface.mtu > super::NATIVE_MTU_MAX => format!(
            "its MTU of {} is above what native XDP takes without fragments: \
             `ip link set dev {name} mtu {}`",
            interface.mtu,
            super::NATIVE_MTU_MAX
        ),
        Some(libc::EOPNOTSUPP) => no_native(name),
        _ => format!("see `virga doctor --interface {name}`"),
    }
}

/// Whether it is known that no MTU helps. Some drivers refuse a large one with the same number.
fn lacks_native(name: &str) -> bool {
    doctor::interface::facts(name)
        .is_ok_and(|facts| doctor::rules::has_native(&facts) == Some(false))
}

fn no_native(name: &str) -> String {
    format!(
        "its driver has no native XDP: set `mode = \"generic\"` or `mode = \"userspace\"` under \
         [forwarding], or leave {name} out of `interfaces`"
    )
}
