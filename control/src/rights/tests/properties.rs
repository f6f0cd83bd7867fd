//! Properties over random chains: delegation never widens, bytes have one reading, nothing panics.

use super::*;
use proptest::{collection::vec, prelude::*, sample::select};

const CHANNELS: [&str; 6] = ["a", "a/b", "a/b/c", "a/c", "b", "b/c"];

fn operations() -> impl Strategy<Value = Operations> {
    vec(select(&Operation::ALL[..]), 1..5).prop_map(|all| Operations::new(&all).unwrap())
}

prop_compose! {
    fn grants()(
        subject in 1u8..5,
        scope in select(&CHANNELS[..]),
        is_subtree in any::<bool>(),
        operations in operations(),
        delegations in 0u8..6,
        begins in 0u64..4,
        lasts in 1u64..8,
    ) -> Grant {
        let reach = if is_subtree { Reach::Subtree } else { Reach::Channel };
        Grant {
            subject: key(subject).public,
            scope: Scope::new(&name(scope), reach),
            operations,
            delegations,
            not_before_s: NOW_S + begins * 100,
            not_after_s: NOW_S + (begins + lasts) * 100,
            generation: 1,
            nonce: [0; 8],
        }
    }
}

/// A chain whose links are signed by the right entities and hold whatever they hold.
fn chains() -> impl Strategy<Value = Chain> {
    vec(grants(), 1..5).prop_map(|grants| {
        let mut signer = key(1);
        let mut bytes = vec![1];
        bytes.extend(signer.public);
        bytes.push(u8::try_from(grants.len()).unwrap());
        for grant in grants {
            let next = (1..5)
                .map(key)
                .find(|key| key.public == grant.subject)
                .unwrap();
            let link = Link::sign(grant, &signer);
            bytes.extend(u16::try_from(link.as_bytes().len()).unwrap().to_be_bytes());
            bytes.extend(link.as_bytes());
            signer = next;
        }
        Chain::parse(&bytes).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a chain allows, each link of it alone would have allowed, and every prefix of it.
    #[test]
    fn delegation_never_widens(
        chain in chains(),
        channel in select(&CHANNELS[..]),
        operation in select(&Operation::ALL[..]),
        at in 0u64..14,
    ) {
        let now_s = NOW_S + at * 100;
        let revocations = Revocations::default();
        let Ok(authentic) = chain.clone().authenticate() else { return Ok(()) };
        let question = Question {
            holder: authentic.holder(),
            operation,
            channel: &name(channel),
            now_s,
            issuers: &[key(1).public],
            revocations: &revocations,
        };
        if authentic.allows(&question).is_err() {
            return Ok(());
        }
        for (index, link) in chain.links().iter().enumerate() {
            let grant = link.grant();
            prop_assert!(grant.scope.covers(question.channel));
            prop_assert!(grant.operations.contains(operation));
            prop_assert!(grant.not_before_s <= now_s + CLOCK_SKEW_S_MAX && now_s < grant.not_after_s);
            let following = chain.links().len() - index - 1;
            prop_assert!(usize::from(grant.delegations) >= following);
            prop_assert!(following == 0 || grant.operations.contains(Operation::Delegate));
        }
    }

    #[test]
    fn any_chain_has_one_encoding(chain in chains()) {
        prop_assert_eq!(Chain::parse(&chain.encode()), Ok(chain));
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in vec(any::<u8>(), 0..600), cut in any::<usize>()) {
        let _chain = Chain::parse(&bytes);
        let _list = List::parse(&bytes);
        let mut real = chain().encode();
        let at = cut % real.len();
        real.splice(at.., bytes.iter().copied());
        if let Ok(read) = Chain::parse(&real) {
            prop_assert!(read.encode() == real);
        }
    }
}
