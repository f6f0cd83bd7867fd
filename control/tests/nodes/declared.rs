//! Channels by command, over real daemons: made, changed and removed while they run, told to all, kept over a
//! restart; and what does not count. The router's entity is the authority.

use crate::{
    payloads,
    stage::{Node, Stage, eventually, in_time},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};
use virga::{
    api::channels::ChannelView,
    config::{CapabilityRules, ChannelConfig, Entity, Listed},
    keys::{self, EntityKey, KeyKind},
    rights::{Declaration, file::channel_line},
};
use virga_ebpf::subnet::Visibility;
use virga_transport::{ChannelName, Mode};

pub(crate) const NAME: &str = "by/command";

/// Three nodes without any channel of their own.
pub(crate) fn stage(authorities: &[(&str, &str)]) -> Stage {
    let stage = Stage::new(&[]);
    for (node, entity) in authorities {
        let block = format!(
            "[[channel_authorities]]\nentity = \"{entity}\"\nwithin = \"by\"\n[forwarding]\n"
        );
        stage.edit(node, "[forwarding]\n", &block);
    }
    stage
}

pub(crate) const ALL: [(&str, &str); 3] = [("a", "router"), ("b", "router"), ("router", "router")];

/// `virga channel …` as an entity at a node; what it printed, or what it said when it failed.
pub(crate) fn channel(at: &Node, owner: &Node, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
    command.arg("channel").args(arguments);
    command.arg("--key").arg(owner.file("entity.key"));
    let output = command.arg("--socket").arg(at.socket()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

pub(crate) fn create(stage: &Stage, at: &str, name: &str, more: &[&str]) -> Result<String, String> {
    let arguments = ["create", name, "--publish", "a", "--subscribe", "b"];
    let owner = stage.node("router");
    channel(stage.node(at), owner, &[&arguments[..], more].concat())
}

async fn known(stage: &Stage, at: &str, name: &str) -> Option<ChannelView> {
    let all = stage.mesh(at).await.channels().await.unwrap();
    all.channels
        .into_iter()
        .find(|channel| channel.name == name)
}

/// Waits until a node knows a version of a channel.
pub(crate) async fn version(stage: &Stage, at: &str, name: &str, wanted: u64) -> ChannelView {
    eventually(&format!("version {wanted} of {name} at {at}"), async || {
        known(stage, at, name)
            .await
            .filter(|channel| channel.version == Some(wanted))
    })
    .await
}

/// Publishes at a until b's subscription gives it.
async fn passes(stage: &Stage, name: &str, text: &str) {
    let mut events = stage.mesh("b").await.subscribe(name).await.unwrap();
    stage.subscribers(name, 1).await;
    let published = stage.mesh("a").await.publish(name, text.as_bytes()).await;
    assert_eq!(published.unwrap().published, 1);
    assert_eq!(payloads(&mut events, 1).await, [text.as_bytes()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_made_changed_and_removed_without_a_restart_and_outlives_one() {
    let mut stage = stage(&ALL);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let no_channel = stage.mesh("a").await.publish(NAME, b"x").await.unwrap_err();
    assert!(
        no_channel.to_string().contains("is not configured"),
        "{no_channel}"
    );

    let said = create(&stage, "a", NAME, &[]).unwrap();
    assert!(
        said.contains("channel by/command is made: version 1"),
        "{said}"
    );
    // It holds at once where it was made, and soon wherever the node's neighbours are.
    assert!(known(&stage, "a", NAME).await.unwrap().holds);
    for node in ["router", "b"] {
        assert!(version(&stage, node, NAME, 1).await.holds, "{node}");
    }
    passes(&stage, NAME, "one").await;
    let twice = create(&stage, "a", NAME, &[]).unwrap_err();
    assert!(
        twice.contains("change it with: virga channel set"),
        "{twice}"
    );

    // Another mode: who has subscribed gets it all the same.
    let mut events = stage.mesh("b").await.subscribe(NAME).await.unwrap();
    stage.subscribers(NAME, 1).await;
    let set = ["set", NAME, "--mode", "unordered", "--priority", "3"];
    channel(stage.node("router"), stage.node("router"), &set).unwrap();
    for node in ["a", "b"] {
        let policy = version(&stage, node, NAME, 2).await.policy.unwrap();
        assert_eq!((policy.mode.as_str(), policy.priority), ("unordered", 3));
    }
    eventually("an event by the new policy", async || {
        let report = stage.mesh("a").await.publish(NAME, b"two").await.unwrap();
        (report.subscribers == 1).then_some(())
    })
    .await;
    assert_eq!(payloads(&mut events, 1).await, [&b"two"[..]]);

    // SIGKILL, and all is as before.
    stage.kill("a");
    stage.start("a").await;
    assert_eq!(known(&stage, "a", NAME).await.unwrap().version, Some(2));
    stage.subscribers(NAME, 1).await;
    passes(&stage, NAME, "three").await;

    channel(stage.node("a"), stage.node("router"), &["rm", NAME]).unwrap();
    version(&stage, "b", NAME, 3).await;
    let ended = in_time("the end", async {
        loop {
            if let Err(error) = events.next_delivery().await.unwrap() {
                return error.to_string();
            }
        }
    });
    let words = ended.await;
    assert!(words.contains("it was removed or changed"), "{words}");
    let no_channel = stage.mesh("a").await.publish(NAME, b"x").await.unwrap_err();
    assert!(
        no_channel.to_string().contains("is not configured"),
        "{no_channel}"
    );
    create(&stage, "b", NAME, &[]).unwrap();
    version(&stage, "a", NAME, 4).await;
    passes(&stage, NAME, "four").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_authority_is_refused_where_it_asks_and_where_it_is_passed_on() {
    // b's own file is as open as it likes to be.
    let mut stage = stage(&[ALL[0], ALL[2], ("b", "b")]);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let (a, b) = (stage.node("a"), stage.node("b"));
    let arguments = ["create", NAME, "--publish", "b", "--subscribe", "b"];
    let refused = channel(a, b, &arguments).unwrap_err();
    assert!(
        refused.contains(
            "is no authority over by/command at this node: name it in a [[channel_authorities]]"
        ),
        "{refused}"
    );
    let outside = ["create", "elsewhere", "--publish", "a", "--subscribe", "b"];
    let refused = channel(a, stage.node("router"), &outside).unwrap_err();
    assert!(
        refused.contains("is no authority over elsewhere"),
        "{refused}"
    );

    channel(b, b, &arguments).unwrap();
    eventually("the router's refusal", async || {
        let status = stage.status("router").await;
        (status.channel_reasons["declaration_authority"] > 0).then_some(())
    })
    .await;
    for node in ["a", "router"] {
        assert!(known(&stage, node, NAME).await.is_none(), "{node}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_declaration_is_not_believed_again() {
    let mut stage = stage(&ALL);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    create(&stage, "a", NAME, &[]).unwrap();
    version(&stage, "b", NAME, 1).await;
    // b misses the removal, and comes back with what it knew.
    stage.kill("b");
    channel(stage.node("a"), stage.node("router"), &["rm", NAME]).unwrap();
    version(&stage, "router", NAME, 2).await;
    stage.start("b").await;
    let removed = version(&stage, "b", NAME, 2).await;
    assert!(!removed.holds);
    // Whoever b has its first session with is shown the old one.
    eventually("the old one at a or the router", async || {
        let mut refused = 0;
        for node in ["a", "router"] {
            refused += stage.status(node).await.channel_reasons["declaration_old"];
        }
        (refused > 0).then_some(())
    })
    .await;
    for node in ["a", "router"] {
        assert_eq!(known(&stage, node, NAME).await.unwrap().version, Some(2));
    }
}

/// Two names below `by` that share a hash.
fn colliding() -> [String; 2] {
    let mut seen = BTreeMap::new();
    (0..)
        .find_map(|number| {
            let text = format!("by/{number}");
            let hash = ChannelName::parse(&text).unwrap().hash(0).0;
            Some([seen.insert(hash, text.clone())?, text])
        })
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_channels_on_one_hash_the_earlier_holds_everywhere() {
    let [one, two] = colliding();
    let mut stage = stage(&ALL);
    // a and b do not reach each other yet.
    for name in ["b", "a"] {
        stage.start(name).await;
    }
    create(&stage, "b", &two, &[]).unwrap();
    create(&stage, "a", &one, &[]).unwrap();
    stage.start("router").await;
    for node in ["a", "b", "router"] {
        assert!(version(&stage, node, &two, 1).await.holds, "{node}");
        let denied = version(&stage, node, &one, 1).await;
        assert_eq!(
            denied.standing,
            format!("denied: {two} has its hash; give it another salt"),
            "{node}"
        );
    }
    passes(&stage, &two, "the former").await;
    let why = stage.node("b").run(&["why", &one, "a"]);
    let words = String::from_utf8(why.stderr).unwrap();
    let refused = format!(
        "does not hold on this node, so nobody may do anything there; denied: {two} has its hash"
    );
    assert!(
        why.status.code() == Some(1) && words.contains(&refused),
        "{words}"
    );

    // Where both are known it is refused, until it has another salt.
    let set = ["set", one.as_str(), "--priority", "1"];
    let refused = channel(stage.node("a"), stage.node("router"), &set).unwrap_err();
    let salt = refused
        .split("declare it with --salt ")
        .nth(1)
        .expect(&refused)
        .trim();
    channel(
        stage.node("a"),
        stage.node("router"),
        &[&set[..], &["--salt", salt]].concat(),
    )
    .unwrap();
    assert!(version(&stage, "b", &one, 2).await.holds);
    passes(&stage, &one, "the latter").await;
    passes(&stage, &two, "the former").await;
}

/// The owner may do all on a channel.
fn policy(text: &str, owner: &EntityKey) -> ChannelConfig {
    let name = ChannelName::parse(text).unwrap();
    let owner = Listed::Only(vec![Entity::from_key(owner.public)]);
    ChannelConfig {
        hash: name.hash(0),
        name,
        salt: 0,
        priority: 0,
        mode: Mode::Ordered,
        hold_max_s: 30,
        fan_out: 0,
        keep: None,
        scopes: Vec::new(),
        max_rate_pps: None,
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        publish: owner.clone(),
        subscribe: owner,
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
    }
}

/// More than ever wait at a time with small queues, all in the first moment of a session.
#[tokio::test(flavor = "multi_thread")]
async fn however_many_a_peer_shows_all_are_heard() {
    const COUNT: usize = 600;
    let mut stage = stage(&ALL);
    let router = stage.node("router");
    let secret = keys::read(KeyKind::Entity, &router.file("entity.key")).unwrap();
    let owner = EntityKey::from(secret);
    let folder = router.file("state/channels");
    std::fs::create_dir_all(&folder).unwrap();
    for number in 0..COUNT {
        let policy = policy(&format!("by/{number}"), &owner);
        let signed = Declaration::new(owner.public, 5, policy)
            .sign(&owner)
            .unwrap();
        let file = folder.join(format!("{number}.channel"));
        std::fs::write(file, channel_line(&signed)).unwrap();
    }
    for name in ["router", "a"] {
        stage.start(name).await;
    }
    eventually("a knows all of them", async || {
        let all = stage.mesh("a").await.channels().await.unwrap();
        (all.channels.len() == COUNT).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_removes_is_removed_also_where_it_cannot_be_written() {
    let mut stage = stage(&ALL);
    for name in ["router", "b"] {
        stage.start(name).await;
    }
    create(&stage, "router", NAME, &[]).unwrap();
    version(&stage, "b", NAME, 1).await;
    let folder = stage.node("b").file("state/channels");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    channel(stage.node("router"), stage.node("router"), &["rm", NAME]).unwrap();
    assert!(!version(&stage, "b", NAME, 2).await.holds);
    assert_eq!(stage.status("b").await.node.unwritten, 1);
    std::fs::remove_file(&folder).unwrap();
    eventually("it is written when it can be", async || {
        (stage.status("b").await.node.unwritten == 0).then_some(())
    })
    .await;
    stage.kill("router");
    stage.kill("b");
    stage.start("b").await;
    assert_eq!(known(&stage, "b", NAME).await.unwrap().version, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_by_command_takes_away_on_all_nodes_outlives_a_restart_and_goes_again() {
    const SCOPE: &str = "by";
    let mut stage = stage(&ALL);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    create(&stage, "a", NAME, &[]).unwrap();
    version(&stage, "b", NAME, 1).await;
    passes(&stage, NAME, "one").await;
    let said = |stage: &Stage, arguments: &[&str]| {
        channel(stage.node("router"), stage.node("router"), arguments)
    };
    let nothing = said(&stage, &["create", SCOPE, "--subtree"]).unwrap_err();
    assert!(nothing.contains("takes nothing away"), "{nothing}");
    let mode = [
        "create",
        SCOPE,
        "--subtree",
        "--subscribe",
        "a",
        "--mode",
        "signed",
    ];
    let refused = said(&stage, &mode).unwrap_err();
    assert!(refused.contains("leave out --mode"), "{refused}");

    let mut events = stage.mesh("b").await.subscribe(NAME).await.unwrap();
    stage.subscribers(NAME, 1).await;
    let made = said(
        &stage,
        &["create", SCOPE, "--subtree", "--subscribe", "router"],
    )
    .unwrap();
    assert!(made.contains("scope by is made: version 1"), "{made}");
    for node in ["a", "b"] {
        let scope = version(&stage, node, SCOPE, 1).await;
        assert!(scope.is_scope && scope.holds, "{node}");
    }
    stage.subscribers(NAME, 0).await;
    in_time("the end", async {
        while let Some(Ok(_)) = events.next_delivery().await {}
    })
    .await;
    assert!(stage.mesh("b").await.subscribe(NAME).await.is_err());
    let seen = known(&stage, "b", NAME).await.unwrap().policy.unwrap();
    assert_eq!(seen.scopes, [SCOPE]);
    let why = stage
        .node("b")
        .run(&["why", NAME, "b", "--to", "subscribe"]);
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(
        why.contains("by: its `subscribe` list does not name it"),
        "{why}"
    );

    stage.kill("b");
    stage.start("b").await;
    assert!(stage.mesh("b").await.subscribe(NAME).await.is_err());
    said(
        &stage,
        &["set", SCOPE, "--subscribe", "b", "--max-rate-pps", "900"],
    )
    .unwrap();
    for node in ["a", "b"] {
        version(&stage, node, SCOPE, 2).await;
    }
    passes(&stage, NAME, "two").await;
    said(&stage, &["set", SCOPE, "--subscribe", "router"]).unwrap();
    version(&stage, "b", SCOPE, 3).await;
    assert!(stage.mesh("b").await.subscribe(NAME).await.is_err());
    said(&stage, &["rm", SCOPE]).unwrap();
    for node in ["a", "b"] {
        version(&stage, node, SCOPE, 4).await;
    }
    passes(&stage, NAME, "three").await;
}
