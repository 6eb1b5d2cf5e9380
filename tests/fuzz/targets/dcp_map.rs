//! Text as a cluster's configuration, and as a cluster's URL: every node that a map names for a vbucket is one of its
//! nodes, and a URL that is shown is read again as the same one.

#![no_main]

use dormouse::event::VbId;
use dormouse::source::dcp::{ClusterMap, ClusterUrl, NodeAddress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let asked = NodeAddress { host: "asked".to_owned(), port: 11210 };
    for is_tls in [false, true] {
        let Ok(map) = ClusterMap::parse(text, &asked, is_tls) else { continue };
        assert!(map.vbuckets() > 0 && !map.is_newer_than(&map));
        for vb in 0..map.vbuckets() {
            if let Some(node) = map.node_of(VbId(vb)) {
                assert!(map.nodes().contains(node) && !node.host.is_empty());
            }
        }
        assert_eq!(map.node_of(VbId(map.vbuckets())), None);
    }
    if let Ok(url) = text.parse::<ClusterUrl>() {
        assert!(!url.seeds.is_empty() && ClusterUrl::is_meant_by(text));
        let again: ClusterUrl = url.to_string().parse().expect("what is shown is read");
        assert_eq!(again, ClusterUrl { user: None, ..url });
    }
});
