//! `virga drops` at running nodes.

use crate::stage::{Node, Program, RELIABLE, Stage, eventually};
use serde_json::Value;
use std::net::UdpSocket;

/// Sends datagrams that are no packets of the mesh.
fn send_garbage(node: &Node, count: usize) {
    let socket = UdpSocket::bind(("127.0.0.6", 0)).unwrap();
    for _ in 0..count {
        socket.send_to(&[0x41; 100], node.listen).unwrap();
    }
}

/// The count of a kind of drop in an answer.
fn count(answer: &Value, place: &str, reason: &str) -> u64 {
    let mut drops = answer["drops"].as_array().unwrap().iter();
    let row = drops.find(|row| row["place"] == place && row["reason"] == reason);
    row.map_or(0, |row| row["count"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn drops_are_told_by_reason_with_the_fix_once_and_while_they_come() {
    let stage = Stage::running(&[RELIABLE]).await;
    let router = stage.node("router");
    send_garbage(router, 20);
    let once = eventually("the drops", async || {
        let answer = router.json(&["drops", "--once", "--json"]);
        (count(&answer, "userspace", "magic") == 20).then_some(answer)
    })
    .await;
    let drops = once["drops"].as_array().unwrap();
    let row = drops.iter().find(|row| row["reason"] == "magic").unwrap();
    assert!(
        row["fix"].as_str().unwrap().contains("another port"),
        "{row}"
    );
    assert!(
        row["meaning"]
            .as_str()
            .unwrap()
            .contains("no packet of the mesh"),
        "{row}"
    );
    let human = String::from_utf8(router.run(&["drops", "--once"]).stdout).unwrap();
    assert!(
        human.contains("userspace  magic ") && human.contains("fix: "),
        "{human}"
    );

    // While one looks: what was there before is not told.
    let mut json = Program::start(&mut router.command(&["drops", "--json", "--seconds", "5"]));
    let mut text = Program::start(&mut router.command(&["drops", "--seconds", "5"]));
    // They come for as long as anybody looks.
    eventually("both have looked for so long", async || {
        send_garbage(router, 1);
        (json.has_ended() && text.has_ended()).then_some(())
    })
    .await;
    let (status, lines, errors) = json.wait();
    assert!(status.success(), "{errors}");
    let told = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<Value> = told
        .flat_map(|line| line["drops"].as_array().unwrap().clone())
        .collect();
    let magic: Vec<&Value> = told.iter().filter(|row| row["reason"] == "magic").collect();
    let new: u64 = magic.iter().map(|row| row["new"].as_u64().unwrap()).sum();
    let before = magic[0]["count"].as_u64().unwrap() - magic[0]["new"].as_u64().unwrap();
    assert!(before >= 20, "{lines}");
    let all = magic.last().unwrap()["count"].as_u64().unwrap();
    assert_eq!(new, all - before, "{lines}");
    let (status, text, errors) = text.wait();
    assert!(status.success(), "{errors}");
    let line = text
        .lines()
        .rfind(|line| line.contains(" magic ") && line.ends_with(" in all"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    let [_, "s", "userspace", "magic", new, "new", all, "in", "all"] = words[..] else {
        panic!("{text}");
    };
    let [new, all] = [new, all].map(|number| number.parse::<u64>().unwrap());
    assert!(new > 0 && all >= 20 + new, "{text}");
    assert_eq!(text.matches("fix: something else").count(), 1, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_drops_says_so_and_one_that_ends_ends_the_watching() {
    let mut stage = Stage::new(&[]);
    stage.start("router").await;
    let router = stage.node("router");
    let said = String::from_utf8(router.run(&["drops", "--once"]).stdout).unwrap();
    assert_eq!(said, "nothing was dropped since the node's start\n");
    let mut watching = Program::start(&mut router.command(&["drops"]));
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    stage.kill("router");
    let (status, _, errors) = watching.wait();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("virga: "), "{errors}");
}
