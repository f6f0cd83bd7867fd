//! Every profile reads, each fact has a source, and what is wrong is refused.

use super::*;
use std::{collections::BTreeSet, fs, path::Path};

const VETH: &str = include_str!("../../../hw/nics/veth.toml");

#[test]
fn every_file_is_compiled_in_and_reads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hw/nics");
    let mut on_disk = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let profile = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(
            files::FILES.contains(&text.as_str()),
            "{} is not in control/src/hw/files.rs",
            path.display()
        );
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let is_named = profile.driver == stem || profile.driver.to_lowercase().contains(&stem);
        assert!(is_named, "{stem} is about {}", profile.driver);
        on_disk += 1;
    }
    assert_eq!(on_disk, files::FILES.len());
    assert_eq!(profiles().len(), files::FILES.len(), "all of them read");
    let names: Vec<&String> = profiles()
        .iter()
        .flat_map(|p| std::iter::once(&p.driver).chain(&p.names))
        .collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}

#[test]
fn the_drivers_that_the_field_runs_on_are_there() {
    for driver in [
        "mlx5_core",
        "ice",
        "i40e",
        "ixgbe",
        "igb",
        "igc",
        "ena",
        "virtio_net",
        "veth",
        "gve",
        "bnxt_en",
        "nfp",
        "tun",
        "macvlan",
        "bridge",
        "nicvf",
        "rvu_nicpf",
        "hv_netvsc",
        "st_gmac",
        "r8169",
    ] {
        let profile = profile(driver).unwrap_or_else(|| panic!("{driver}"));
        assert!(profile.native.value().is_some(), "{driver}");
        assert!(profile.target.value().is_some(), "{driver}");
    }
    assert!(profile("nonsense").is_none());
}

#[test]
fn facts_are_what_the_sources_say() {
    let veth = profile("veth").unwrap();
    assert_eq!(veth.native.value(), Some(&Since::Kernel(Kernel(4, 19))));
    assert_eq!(veth.target.value(), Some(&Target::PeerReady));
    assert_eq!(veth.mtu_max.value().unwrap().bytes(4_096), Some(3_506));
    let igc = profile("igc").unwrap();
    assert_eq!(igc.mtu_max.value().unwrap().bytes(4_096), Some(1_500));
    assert_eq!(
        profile("gve").unwrap().queues.value(),
        Some(&Queues::AtMostHalf)
    );
    assert_eq!(
        profile("bridge").unwrap().native.value(),
        Some(&Since::Never)
    );
    assert_eq!(profile("bridge").unwrap().queues, Fact::Unknown);
}

#[test]
fn a_kernel_has_what_is_not_newer() {
    assert!(Since::Kernel(Kernel(6, 1)).is_in(Kernel(6, 12)));
    assert!(Since::Kernel(Kernel(5, 19)).is_in(Kernel(6, 1)));
    assert!(!Since::Kernel(Kernel(6, 3)).is_in(Kernel(6, 1)));
    assert!(!Since::Never.is_in(Kernel(9, 0)));
    assert_eq!(Kernel::of_release("6.1.0-25-amd64"), Some(Kernel(6, 1)));
    assert_eq!(Kernel::of_release("strange"), None);
}

#[test]
fn what_is_not_strictly_a_profile_is_refused() {
    let refused = |from: &str, to: &str, said: &str| {
        assert!(VETH.contains(from), "{from}");
        let error = parse(&VETH.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    };
    refused("driver =", "drivers =", "drivers");
    refused("note =", "notes =", "notes");
    refused("value = \"4.19\"\n", "", "value");
    refused("value = \"4.19\"", "value = \"4.19.1\"", "4.19.1");
    refused("value = \"peer-ready\"", "value = \"ready\"", "ready");
    refused("value = \"page - 590\"", "value = \"page\"", "page");
    refused("value = \"page - 590\"", "value = -1", "-1");
    let source = VETH.lines().find(|l| l.starts_with("source")).unwrap();
    refused(source, "", "source");
    refused(source, "source = \"someone said so\"", "someone said so");
    refused(source, "source = \"commit because\"", "commit because");
    let gve = include_str!("../../../hw/nics/gve.toml");
    let error = parse(&gve.replacen("touches = \"attach\"", "touches = \"all\"", 1)).unwrap_err();
    assert!(error.to_string().contains("all"), "{error}");
    let bridge = include_str!("../../../hw/nics/bridge.toml");
    let error = parse(&bridge.replacen("lro = \"unknown\"", "lro = \"\"", 1)).unwrap_err();
    assert!(error.to_string().contains("the word unknown"), "{error}");
}

#[test]
fn only_what_a_profile_lists_goes_without_a_copy() {
    let may = |driver, kernel| may_not_copy(driver, Some(kernel));
    assert_eq!(may("ixgbe", Kernel(6, 12)), Ok(()));
    assert_eq!(may("ice", Kernel(6, 12)), Ok(()));
    assert_eq!(may("virtio_net", Kernel(6, 13)), Ok(()));
    let said = |driver, kernel| may(driver, kernel).unwrap_err();
    assert!(said("ice", Kernel(6, 1)).contains("a null pointer"));
    assert!(said("ixgbe", Kernel(4, 19)).contains("no kernel up to 4.19"));
    assert!(said("virtio_net", Kernel(6, 12)).contains("6.12"));
    assert!(said("veth", Kernel(6, 12)).contains("veth"));
    assert!(said("nobody's", Kernel(6, 12)).contains("no profile"));
    assert!(may_not_copy("ice", None).is_err());
}
