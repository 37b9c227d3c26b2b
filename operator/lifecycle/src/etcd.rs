//! etcd: what its members should be, what may be done to one of them now, and when its data is not the data it was.
//!
//! The StatefulSet never restarts a member by itself (`OnDelete`). Of several members one at a time is restarted here,
//! only while all the others are well, and the leader last. A lone member is not restarted: another one joins, takes
//! over, and the old one leaves.

use jiff::SignedDuration;

mod beginning;
mod health;
mod members;
mod memory;
mod restart;
mod servers;
pub mod snapshot;
mod step;
mod version;

pub use self::health::{Health, health, quorum};
pub use self::members::{Places, alone, bootstrap, members, placed, places, put_places};
pub use self::memory::identity;
pub use self::restart::{outdated, restart};
pub use self::servers::{Servers, dialled, put_servers, servers, turned};
pub use self::step::{Step, actions, next_step, rolls, tell};
pub use self::version::{
    Series, ended, image, let_in, order, problem, progress, put_image, series_of, under_way,
};

/// ConfigMap that members start from.
pub const BOOTSTRAP: &str = "etcd-bootstrap";
/// ConfigMap that remembers whose data it is: the cluster ID, and the volume of each member that was seen well.
/// Tenants cannot reach it. It is made when all members are well for the first time.
pub const IDENTITY: &str = "etcd-identity";
/// Key of the remembered cluster ID.
pub const CLUSTER_ID_KEY: &str = "cluster-id";
/// Key of what makes a member without data join instead of founding a cluster; a variable of that name in pods.
pub const STATE_KEY: &str = "ETCD_INITIAL_CLUSTER_STATE";

/// Most members that there can be, whatever a spec says.
pub(crate) const MOST: i32 = 5;
/// Where there may be a lone member: it is replaced by one at the other place, and that one by one at the first again.
pub(crate) const LONE_PLACES: [i32; 2] = [0, 1];

/// Grace period of a member: its log is synced at every write, so that nothing is gained by waiting for clients'
/// watches, which never end (etcd holds its listener closed for 5 s + 2 x election timeout while it waits).
pub const GRACE_SECONDS: u32 = 1;

/// A member's first starts fail while it is not known to the others, or they are not by name: seconds.
const STARTS: SignedDuration = SignedDuration::from_secs(30);
