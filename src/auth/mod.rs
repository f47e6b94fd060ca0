//! Auth: who may do what. Users have roles, roles have permissions on keys, and the user `root` sees to both.
//!
//! ```text
//!   user alice ── roles: app, audit            role app    READWRITE [app/, app0)
//!                       │                      role audit  READ      [log/, log0)   READ config
//!                       ▼
//!   derived: alice reads  [app/, app0) [config, config\0) [log/, log0)
//!            alice writes [app/, app0)
//! ```
//!
//! [`Store`] is the replicated part, changed by apply alone, so every member has the same one. What a user may do is the *union*
//! of what his roles say: a range that two permissions cover together is covered ([`permission::Ranges`]). That union is derived, and
//! built wherever users are: by the one constructor for a start and for a snapshot, and by each change that concerns it.
//!
//! **Auth revision.** Every change of a user or role makes the next auth revision. A request is checked at the place that the
//! log gives it, and carries the auth revision at which its sender was recognised. Where users or roles have changed since, it is
//! refused ([`Error::OldRevision`]): the name on it may be somebody else's by now. Clients log in again. Requests that only the role
//! `root` may make are spared that, as in etcd: whoever changes ten things in a row would be refused nine times.
//!
//! **Root rules.** Auth is enabled once a user `root` has the role `root`, and while it is, neither that user nor that role can go, nor
//! be parted. The role need not exist as one: it stands for everything.
//!
//! **Passwords** come as bcrypt hashes ([`password`]), made before anything is proposed. **Tokens** ([`token::Tokens`]) are what a member
//! knows users by. Each is made by an entry of the log and so known to every member; when it ends is each member's own clock's
//! business, and a restart forgets all of them. Or they are signed and say themselves whose they are ([`jwt::Jwt`]).
//!
//! What a request needs is said in one place, `state::permission`, which knows requests and leases.
//!
//! Deliberately missing: a bound on how often a password may be tried; the edge lets only a few be compared at a time.

mod es512;
pub mod jwt;
pub mod password;
pub mod permission;
pub mod store;
pub mod token;

pub use jwt::Jwt;
pub use permission::Access;
pub use store::{Guard, Store};
pub use token::Tokens;

/// The user who manages the others, and the role that allows everything.
pub const ROOT: &str = "root";

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker<'a> {
    /// A member, on nobody's behalf: it may do everything.
    Member,
    /// Somebody who has not said who he is.
    Nobody,
    /// A user, recognised at this auth revision.
    User {
        /// His name.
        name: &'a str,
        /// The auth revision.
        revision: u64,
    },
}

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Auth cannot be enabled without a user `root`.
    NoRootUser,
    /// The user `root` needs the role `root` for that.
    NoRootRole,
    /// A user needs a name; also: who asks has not said who he is.
    UserEmpty,
    /// The name is taken.
    UserExists,
    /// No such user.
    UserNotFound,
    /// A role needs a name.
    RoleEmpty,
    /// The name is taken.
    RoleExists,
    /// No such role.
    RoleNotFound,
    /// The user does not have that role.
    RoleNotGranted,
    /// The grant does not say what is granted.
    PermissionMissing,
    /// The role does not have that permission.
    PermissionNotGranted,
    /// What must not be while auth is on, or a permission on no key at all.
    InvalidManagement,
    /// Not with this user's roles.
    PermissionDenied,
    /// Users or roles have changed since the user was recognised.
    OldRevision,
    /// Nobody logs in while auth is off.
    NotEnabled,
    /// No such user, or not his password.
    WrongPassword,
    /// The user has no password, and cannot log in with one.
    NoPassword,
    /// This member recognises tokens, and has no key to make any.
    VerifyOnly,
}
