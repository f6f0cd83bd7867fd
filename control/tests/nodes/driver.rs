//! Where io_uring is refused, as containers refuse it: plain system calls take over, and `status`
//! says why; or the node does not start, where its file insists.

use crate::stage::{RELIABLE, Stage};
use std::{io, os::unix::process::CommandExt as _, process::Command};

/// Has the kernel refuse this process, and what it starts, a ring.
fn refuse_rings(errno: libc::c_int) -> io::Result<()> {
    let number = u32::try_from(libc::SYS_io_uring_setup).map_err(io::Error::other)?;
    let errno = errno.cast_unsigned();
    let step = |code: u32, jump_false: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt: 0,
        jf: jump_false,
        k,
    };
    // The number of the system call is the first word of what a filter sees.
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | errno,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the first call takes numbers alone; the second reads `program` and the filter that it
    // points to, which both live until it returns.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, none, none, none) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) != 0
    };
    if refused {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn without_rings(errno: libc::c_int) -> impl FnOnce(&mut Command) {
    move |command| {
        // SAFETY: between fork and exec this only makes system calls, and allocates nothing.
        unsafe { command.pre_exec(move || refuse_rings(errno)) };
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_rings_are_refused_plain_calls_take_over_and_status_says_why() {
    for (errno, words) in [
        (libc::EPERM, "seccomp filter or kernel.io_uring_disabled"),
        (libc::ENOSYS, "seccomp filter hides it"),
    ] {
        let mut stage = Stage::new(&[RELIABLE]);
        stage.start_with("a", without_rings(errno)).await;
        let socket = stage.status("a").await.socket;
        assert_eq!(socket.driver, "mmsg");
        assert!(socket.why.contains(words), "{}", socket.why);
        let output = stage.node("a").run(&["status"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let line = "driver: mmsg (io_uring cannot be set up: ";
        assert!(text.contains(line) && text.contains(words), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_insists_on_a_refused_driver_does_not_start() {
    let stage = Stage::new(&[RELIABLE]);
    stage.edit("a", "[forwarding]", "driver = \"uring\"\n[forwarding]");
    let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
    command
        .args(["node", "run", "--config"])
        .arg(stage.node("a").config());
    without_rings(libc::EPERM)(&mut command);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        errors.contains("\"uring\" cannot run: io_uring"),
        "{errors}"
    );
    assert!(errors.contains("driver = \"auto\""), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_that_is_asked_for_runs_and_counts() {
    let alone = Stage::running(&[RELIABLE]).await;
    let automatic = alone.status("a").await.socket;
    drop(alone);
    if automatic.driver != "uring" {
        println!("skipped for uring: {}", automatic.why);
    }
    // What `auto` takes, and what runs everywhere.
    for driver in [automatic.driver.as_str(), "mmsg"] {
        let mut stage = Stage::new(&[RELIABLE]);
        for name in ["a", "router", "b"] {
            let line = format!("driver = \"{driver}\"\n[forwarding]");
            stage.edit(name, "[forwarding]", &line);
        }
        for name in ["router", "b", "a"] {
            stage.start(name).await;
        }
        let events = stage.subscribed(RELIABLE.name).await;
        drop(events);
        let socket = stage.status("router").await.socket;
        assert_eq!(socket.driver, driver);
        assert_eq!(socket.why, "the configuration asks for it");
        assert!(socket.sent.datagrams > 0 && socket.received.datagrams > 0);
        let own = if driver == "uring" {
            "completions"
        } else {
            "waits"
        };
        assert!(socket.figures[own] > 0, "{:?}", socket.figures);
    }
}
