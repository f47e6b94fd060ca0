//! Users, roles, whether they count, and the auth revision. Replicated; changed by apply alone.
//!
//! Promises: users and roles iterate by name; what is in memory is what the rows say, and what a user may do is what his roles
//! say; a change that is refused has changed nothing. In what order a change is examined, and which changes make a new auth revision,
//! is etcd's (server/auth/store.go), for clients see it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::permission::{Access, Ranges};
use super::{Asker, Error, ROOT};
use crate::pb::authpb::{self, permission::Type};
use crate::pb::etcdserverpb as pb;
use crate::pb::everwatchpb::{UserAdd, UserPassword};
use crate::storage::backend::{Batch, Bucket, Reader};
use crate::storage::{self, schema};
use crate::types::KeyRange;

/// The auth revision of a store nobody has changed.
const FIRST_REVISION: u64 = 1;

/// Everything replicated about users.
#[derive(Debug, PartialEq)]
pub struct Store {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, authpb::Role>,
}

#[derive(Debug, PartialEq)]
struct User {
    /// Its roles are in order, each once. There may be some that do not exist.
    record: authpb::User,
    /// What they come to; derived.
    granted: Granted,
}

/// What a user's roles come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Granted {
    read: Ranges,
    write: Ranges,
}

/// Decides about keys, for one who asks.
#[derive(Clone, Copy, Debug)]
pub enum Guard<'a> {
    /// He may do everything.
    Open,
    /// He may do what his roles say.
    Roles(&'a Granted),
}

impl Guard<'_> {
    /// Whether he may do this with every key of the range.
    pub fn check(&self, access: Access, range: &KeyRange) -> Result<(), Error> {
        let covered = match (self, access) {
            (Guard::Open, _) => true,
            (Guard::Roles(granted), Access::Read) => granted.read.covers(range),
            (Guard::Roles(granted), Access::Write) => granted.write.covers(range),
        };
        if covered { Ok(()) } else { Err(Error::PermissionDenied) }
    }
}

impl Store {
    /// What the rows say.
    pub fn open(rows: &dyn Reader) -> storage::Result<Store> {
        let revision = match rows.get(Bucket::Meta, schema::AUTH_REVISION)? {
            Some(row) => schema::read_u64(&row).ok_or_else(|| damaged("the auth revision is not a number"))?,
            None => FIRST_REVISION,
        };
        let enabled = rows.get(Bucket::Meta, schema::AUTH_ENABLED)?.is_some();
        let mut store = Store { enabled, revision, users: BTreeMap::new(), roles: BTreeMap::new() };
        each_row(rows, Bucket::Roles, |name, row| {
            let record = authpb::Role::decode(row).map_err(|_| damaged("the row of a role cannot be read"))?;
            store.roles.insert(named(name, &record.name)?, record);
            Ok(())
        })?;
        each_row(rows, Bucket::Users, |name, row| {
            let record = authpb::User::decode(row).map_err(|_| damaged("the row of a user cannot be read"))?;
            let granted = store.granted(&record.roles);
            store.users.insert(named(name, &record.name)?, User { record, granted });
            Ok(())
        })?;
        Ok(store)
    }

    /// Whether users and roles count.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The auth revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What decides about the keys that somebody asks for. He must have been recognised at the present auth revision.
    pub fn guard(&self, asker: Asker<'_>) -> Result<Guard<'_>, Error> {
        if !self.enabled {
            return Ok(Guard::Open);
        }
        match asker {
            Asker::Member => Ok(Guard::Open),
            Asker::Nobody => Err(Error::UserEmpty),
            Asker::User { revision, .. } if revision < self.revision => Err(Error::OldRevision),
            Asker::User { name, .. } => {
                let user = self.users.get(name).ok_or(Error::PermissionDenied)?;
                Ok(if has_role(&user.record, ROOT) { Guard::Open } else { Guard::Roles(&user.granted) })
            }
        }
    }

    /// Lets through whoever is somebody: any user.
    pub fn user(&self, asker: Asker<'_>) -> Result<(), Error> {
        self.record_of(asker).map(drop)
    }

    /// Lets through whoever has the role `root`.
    pub fn root(&self, asker: Asker<'_>) -> Result<(), Error> {
        match self.record_of(asker)? {
            Some(user) if !has_role(user, ROOT) => Err(Error::PermissionDenied),
            _ => Ok(()),
        }
    }

    /// Lets through whoever has this role, or `root`.
    pub fn role_holder(&self, asker: Asker<'_>, role: &str) -> Result<(), Error> {
        match self.record_of(asker)? {
            Some(user) if !has_role(user, ROOT) && !has_role(user, role) => Err(Error::PermissionDenied),
            _ => Ok(()),
        }
    }

    /// The user who asks; none where it does not matter who does.
    fn record_of(&self, asker: Asker<'_>) -> Result<Option<&authpb::User>, Error> {
        match asker {
            _ if !self.enabled => Ok(None),
            Asker::Member => Ok(None),
            Asker::Nobody => Err(Error::UserEmpty),
            Asker::User { name, .. } => {
                self.users.get(name).map(|user| Some(&user.record)).ok_or(Error::PermissionDenied)
            }
        }
    }

    /// The hash to compare a password with.
    pub fn hash_of(&self, user: &str) -> Result<Bytes, Error> {
        if !self.enabled {
            return Err(Error::NotEnabled);
        }
        let record = &self.users.get(user).ok_or(Error::WrongPassword)?.record;
        if has_no_password(record) { Err(Error::NoPassword) } else { Ok(record.password.clone()) }
    }

    /// Whether a user whose password was compared at this auth revision may have a token. [`Error::OldRevision`]: it must be compared again.
    pub fn authenticate(&self, user: &str, compared_at: u64) -> Result<(), Error> {
        self.hash_of(user)?;
        if compared_at == self.revision { Ok(()) } else { Err(Error::OldRevision) }
    }

    /// The roles of a user.
    pub fn roles_of(&self, user: &str) -> Result<Vec<String>, Error> {
        Ok(self.users.get(user).ok_or(Error::UserNotFound)?.record.roles.clone())
    }

    /// What a role allows.
    pub fn permissions_of(&self, role: &str) -> Result<Vec<authpb::Permission>, Error> {
        let record = self.roles.get(role).ok_or(Error::RoleNotFound)?;
        if role != ROOT {
            return Ok(record.key_permission.clone());
        }
        let range_end = Bytes::from_static(b"\0");
        Ok(vec![authpb::Permission { perm_type: Type::Readwrite as i32, key: Bytes::new(), range_end }])
    }

    /// The names of all users.
    pub fn users(&self) -> impl Iterator<Item = &String> {
        self.users.keys()
    }

    /// The names of all roles.
    pub fn roles(&self) -> impl Iterator<Item = &String> {
        self.roles.keys()
    }

    /// Users and roles count from now on.
    pub fn enable(&mut self, batch: &mut Batch) -> Result<(), Error> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT).ok_or(Error::NoRootUser)?;
        if !has_role(&root.record, ROOT) {
            return Err(Error::NoRootRole);
        }
        self.enabled = true;
        batch.put(Bucket::Meta, Bytes::from_static(schema::AUTH_ENABLED), Bytes::new());
        Ok(())
    }

    /// They do not any more. They are kept.
    pub fn disable(&mut self, batch: &mut Batch) {
        if self.enabled {
            self.enabled = false;
            batch.delete(Bucket::Meta, Bytes::from_static(schema::AUTH_ENABLED));
            self.changed(batch);
        }
    }

    /// A new user, without roles.
    pub fn add_user(&mut self, new: &UserAdd, batch: &mut Batch) -> Result<(), Error> {
        if new.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(&new.name) {
            return Err(Error::UserExists);
        }
        let options = Some(new.options.unwrap_or_default());
        let record =
            authpb::User { name: new.name.clone().into(), password: new.hash.clone(), roles: Vec::new(), options };
        self.put_user(&new.name, record, batch);
        self.changed(batch);
        Ok(())
    }

    /// A user goes.
    pub fn delete_user(&mut self, request: &pb::AuthUserDeleteRequest, batch: &mut Batch) -> Result<(), Error> {
        if self.enabled && request.name == ROOT {
            return Err(Error::InvalidManagement);
        }
        self.users.remove(&request.name).ok_or(Error::UserNotFound)?;
        batch.delete(Bucket::Users, request.name.clone().into());
        self.changed(batch);
        Ok(())
    }

    /// Another password. A user who has none does not get one by it.
    pub fn change_password(&mut self, change: &UserPassword, batch: &mut Batch) -> Result<(), Error> {
        let mut record = self.user_record(&change.name)?;
        if !has_no_password(&record) {
            record.password = change.hash.clone();
        }
        self.put_user(&change.name, record, batch);
        self.changed(batch);
        Ok(())
    }

    /// A user gets a role; one that he has is no change.
    pub fn grant_role(&mut self, request: &pb::AuthUserGrantRoleRequest, batch: &mut Batch) -> Result<(), Error> {
        let mut record = self.user_record(&request.user)?;
        if request.role != ROOT && !self.roles.contains_key(&request.role) {
            return Err(Error::RoleNotFound);
        }
        if let Err(at) = record.roles.binary_search(&request.role) {
            record.roles.insert(at, request.role.clone());
            self.put_user(&request.user, record, batch);
            self.changed(batch);
        }
        Ok(())
    }

    /// A user loses a role.
    pub fn revoke_role(&mut self, request: &pb::AuthUserRevokeRoleRequest, batch: &mut Batch) -> Result<(), Error> {
        if self.enabled && request.name == ROOT && request.role == ROOT {
            return Err(Error::InvalidManagement);
        }
        let mut record = self.user_record(&request.name)?;
        let at = record.roles.binary_search(&request.role).map_err(|_| Error::RoleNotGranted)?;
        record.roles.remove(at);
        self.put_user(&request.name, record, batch);
        self.changed(batch);
        Ok(())
    }

    /// A new role, without permissions.
    pub fn add_role(&mut self, request: &pb::AuthRoleAddRequest, batch: &mut Batch) -> Result<(), Error> {
        if request.name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.roles.contains_key(&request.name) {
            return Err(Error::RoleExists);
        }
        let record = authpb::Role { name: request.name.clone().into(), key_permission: Vec::new() };
        self.put_role(&request.name, record, batch);
        self.changed(batch);
        Ok(())
    }

    /// A role goes, and whoever has it loses it.
    pub fn delete_role(&mut self, request: &pb::AuthRoleDeleteRequest, batch: &mut Batch) -> Result<(), Error> {
        if self.enabled && request.role == ROOT {
            return Err(Error::InvalidManagement);
        }
        self.roles.remove(&request.role).ok_or(Error::RoleNotFound)?;
        batch.delete(Bucket::Roles, request.role.clone().into());
        for name in self.holders(&request.role) {
            let mut record = self.users[&name].record.clone();
            record.roles.retain(|role| *role != request.role);
            self.put_user(&name, record, batch);
        }
        self.changed(batch);
        Ok(())
    }

    /// A role gets a permission; one on the very same range is replaced.
    pub fn grant_permission(
        &mut self,
        request: &pb::AuthRoleGrantPermissionRequest,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let new = request.perm.as_ref().ok_or(Error::PermissionMissing)?;
        if !is_grantable(new) {
            return Err(Error::InvalidManagement);
        }
        let mut record = self.roles.get(&request.name).ok_or(Error::RoleNotFound)?.clone();
        let permissions = &mut record.key_permission;
        match permissions.iter_mut().find(|old| old.key == new.key && old.range_end == new.range_end) {
            Some(old) => old.perm_type = new.perm_type,
            None => {
                let at = permissions.partition_point(|old| old.key <= new.key);
                permissions.insert(at, new.clone());
            }
        }
        self.change_role(&request.name, record, batch);
        Ok(())
    }

    /// A role loses the permission on this very range.
    pub fn revoke_permission(
        &mut self,
        request: &pb::AuthRoleRevokePermissionRequest,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let mut record = self.roles.get(&request.role).ok_or(Error::RoleNotFound)?.clone();
        let before = record.key_permission.len();
        record.key_permission.retain(|old| old.key != request.key || old.range_end != request.range_end);
        if record.key_permission.len() == before {
            return Err(Error::PermissionNotGranted);
        }
        self.change_role(&request.role, record, batch);
        Ok(())
    }

    fn change_role(&mut self, name: &str, record: authpb::Role, batch: &mut Batch) {
        self.put_role(name, record, batch);
        for holder in self.holders(name) {
            let granted = self.granted(&self.users[&holder].record.roles);
            self.users.entry(holder).and_modify(|user| user.granted = granted);
        }
        self.changed(batch);
    }

    /// What roles come to together.
    fn granted(&self, roles: &[String]) -> Granted {
        let roles = roles.iter().filter_map(|role| self.roles.get(role));
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in roles.flat_map(|role| &role.key_permission) {
            let range = KeyRange::from_wire(permission.key.clone(), permission.range_end.clone());
            match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => read.push(range),
                Ok(Type::Write) => write.push(range),
                Ok(Type::Readwrite) => {
                    read.push(range.clone());
                    write.push(range);
                }
                // Of a later version of the API: it allows nothing that we know.
                Err(_) => {}
            }
        }
        Granted { read: Ranges::union(&read), write: Ranges::union(&write) }
    }

    fn holders(&self, role: &str) -> Vec<String> {
        let holders = self.users.iter().filter(|(_, user)| has_role(&user.record, role));
        holders.map(|(name, _)| name.clone()).collect()
    }

    fn user_record(&self, name: &str) -> Result<authpb::User, Error> {
        Ok(self.users.get(name).ok_or(Error::UserNotFound)?.record.clone())
    }

    fn put_user(&mut self, name: &str, record: authpb::User, batch: &mut Batch) {
        batch.put(Bucket::Users, Bytes::copy_from_slice(name.as_bytes()), record.encode_to_vec().into());
        let granted = self.granted(&record.roles);
        self.users.insert(name.to_owned(), User { record, granted });
    }

    fn put_role(&mut self, name: &str, record: authpb::Role, batch: &mut Batch) {
        batch.put(Bucket::Roles, Bytes::copy_from_slice(name.as_bytes()), record.encode_to_vec().into());
        self.roles.insert(name.to_owned(), record);
    }

    fn changed(&mut self, batch: &mut Batch) {
        self.revision += 1;
        batch.put(Bucket::Meta, Bytes::from_static(schema::AUTH_REVISION), schema::u64_row(self.revision));
    }
}

fn has_role(user: &authpb::User, role: &str) -> bool {
    user.roles.binary_search_by(|has| has.as_str().cmp(role)).is_ok()
}

fn has_no_password(user: &authpb::User) -> bool {
    user.options.is_some_and(|options| options.no_password)
}

/// Whether a permission is on any key at all.
fn is_grantable(permission: &authpb::Permission) -> bool {
    !permission.key.is_empty() && !KeyRange::from_wire(permission.key.clone(), permission.range_end.clone()).is_empty()
}

fn each_row(
    rows: &dyn Reader,
    bucket: Bucket,
    mut visit: impl FnMut(&[u8], &[u8]) -> storage::Result<()>,
) -> storage::Result<()> {
    let mut outcome = Ok(());
    rows.scan(bucket, &[], None, &mut |key, value| {
        outcome = visit(key, value);
        outcome.is_ok()
    })?;
    outcome
}

/// The name of a row whose record says the same.
fn named(key: &[u8], name: &[u8]) -> storage::Result<String> {
    let name = (key == name).then(|| String::from_utf8(name.to_vec()).ok()).flatten();
    name.ok_or_else(|| damaged("the row of a user or role is not where it belongs"))
}

fn damaged(what: &str) -> storage::Error {
    storage::Error::Engine(format!("the state is damaged: {what}"))
}
