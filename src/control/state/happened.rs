//! What can happen to an object of the catalog by decision: the one list of reasons of such events.
//! Events about conditions have the reasons of conditions
//! ([`crate::control::objects::condition::Why`]). docs/api.md has both; a test compares.

macro_rules! happened {
    ($($happened:ident $kind:ident $means:literal,)*) => {
        /// See the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Happened {
            $(#[doc = $means] $happened,)*
        }

        impl Happened {
            pub const ALL: &'static [Happened] = &[$(Happened::$happened,)*];

            /// Never changes: programs compare it.
            pub fn word(self) -> &'static str {
                match self {
                    $(Happened::$happened => stringify!($happened),)*
                }
            }

            /// The kind of the objects that it happens to, as on the command line.
            pub fn kind(self) -> &'static str {
                match self {
                    $(Happened::$happened => stringify!($kind),)*
                }
            }

            /// What it means.
            pub fn means(self) -> &'static str {
                match self {
                    $(Happened::$happened => $means,)*
                }
            }
        }
    };
}

happened! {
    CatalogRestored cluster "the catalog was restored or recovered, and has a new history",
    LevelRaised cluster "the feature level was raised",
    AuthoritySet cluster "the catalog got the authority's key, or its sealed form",
    AuthorityAdded cluster "a new authority is trusted, and is to sign later",
    AuthoritySwitched cluster "the new authority signs",
    AuthorityRetired cluster "the old authority is trusted no more: what it signed is void",
    AuthorityAbandoned cluster "the new authority, which has not signed, is trusted no more",
    TokenMade cluster "a token was made",
    TokenRemoved cluster "a token was revoked, or its time was over",
    CertificateIssued cluster "a certificate for a person or a driver was signed",
    CertificateRevoked cluster "a certificate was revoked before its time",
    NodeAdded node "the node is known, by its first pod or by its own report",
    NodeRebooted node "the node has started anew",
    NodeLost node "the node was declared lost: it loses its volumes",
    NodeCleared node "the node is not lost any more",
    PodJoined pod "the pod has joined the cluster",
    PodMoved pod "the pod has other addresses, or is on another node",
    PodUpgraded pod "the pod's program supports other feature levels",
    CatalogMemberAdded pod "the pod gets a member of the catalog",
    CatalogMemberRemoved pod "the pod's member leaves the catalog",
    DiskAdded disk "a pod has registered the disk",
    DiskMoved disk "the disk is in another pod",
    ClassCreated class "the class was made",
    ClassChanged class "the class was changed",
    ClassDeleted class "the class was removed",
    VolumeCreated volume "the volume was made",
    VolumeUsable volume "every shard has a leader for the first time",
    VolumeRelabelled volume "the volume has other labels",
    GrowthAsked volume "the volume is to be larger",
    Grown volume "clients can use the new size",
    Opened volume "anybody with rights may use the volume",
    Closed volume "only attachments may use the volume",
    Published volume "a node may use the volume once every shard has admitted it",
    FileSystemMade volume "a node has made a file system of the volume, or has found one",
    Attached volume "every shard has admitted the node",
    Unpublished volume "a node loses the volume once every shard has fenced it",
    Fenced volume "every shard has fenced the node",
    Deleted volume "the volume was deleted, and is kept for a while",
    Undeleted volume "the deleted volume comes back",
    Restored volume "every shard lets clients in again",
    DestructionBegun volume "the volume's replicas are being destroyed",
    Destroyed volume "the last replica is destroyed, and the name is free",
}

impl Happened {
    /// Somebody should look.
    pub fn warns(self) -> bool {
        matches!(self, Happened::NodeLost | Happened::CatalogRestored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_the_api_lists_all_decisions() {
        let page = include_str!("../../../docs/api.md");
        for happened in Happened::ALL {
            let row =
                format!("| `{}` | {} | {} |", happened.word(), happened.kind(), happened.means());
            assert!(page.contains(&row), "docs/api.md lacks: {row}");
        }
    }
}
