//! Text as a cluster's configuration, and as a cluster's URL: every node that a map names for a vbucket is one of its
//! nodes.

#![no_main]

use dormouse::event::VbId;
use dormouse::source::dcp::{ClusterMap, ClusterUrl, Network, NodeAddress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let asked = NodeAddress { host: "asked".to_owned(), port: 11210 };
    let seeds = [NodeAddress { host: "outside".to_owned(), port: 11210 }];
    for network in [Network::Auto, Network::Own, Network::Named("external".to_owned())] {
        for is_tls in [false, true] {
            let Ok(map) = ClusterMap::parse_in(&network, &seeds, text, &asked, is_tls) else { continue };
            assert!(map.vbuckets() > 0 && !map.is_newer_than(&map));
            for vb in 0..map.vbuckets() {
                assert!(map.node_of(VbId(vb)).is_none_or(|node| map.nodes().contains(node)));
            }
            assert_eq!(map.node_of(VbId(map.vbuckets())), None);
        }
    }
    if let Ok(url) = text.parse::<ClusterUrl>() {
        assert!(!url.seeds.is_empty() && ClusterUrl::is_meant_by(text));
    }
});
