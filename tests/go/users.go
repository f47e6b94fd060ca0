package main

import (
	"context"
	"fmt"
	"sort"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/etcdserver/api/v3rpc/rpctypes"
)

// Users, roles, and what a client does when its token is no longer known.
var userCases = []testCase{
	{"auth_needs_a_root_to_be_enabled", guarded, authRoot},
	{"auth_users_and_roles_are_kept", guarded, authKept},
	{"auth_grants_keys_and_ranges", guarded, authGrants},
	{"auth_watches_need_permission", guarded, authWatches},
	{"auth_passwords_and_users_that_change", guarded, authChanges},
	{"auth_client_asks_for_a_token_again", guarded, authAgain},
	{"auth_leases_and_locks", guarded, authLeases},
}

// enable adds root and a user u, who may read and write the case's own keys, and takes all back when the case is over.
func (t *T) enable() (root, user *clientv3.Client) {
	c := t.client()
	_, err := c.UserAdd(t.ctx, "root", "rootpw")
	t.must(err)
	_, err = c.UserGrantRole(t.ctx, "root", "root")
	if err == rpctypes.ErrRoleNotFound {
		_, err = c.RoleAdd(t.ctx, "root")
		t.must(err)
		_, err = c.UserGrantRole(t.ctx, "root", "root")
	}
	t.must(err)
	t.addUser(c, "u", "upw", t.key(""), clientv3.GetPrefixRangeEnd(t.key("")), clientv3.PermissionType(clientv3.PermReadWrite))
	_, err = c.AuthEnable(t.ctx)
	t.must(err)
	root = t.client(as("root", "rootpw"))
	t.later(func() {
		ctx, cancel := context.WithTimeout(context.Background(), lastWords/2)
		defer cancel()
		root, err := t.tryClient(as("root", "rootpw"))
		if err != nil {
			return
		}
		root.AuthDisable(ctx)
		for _, user := range []string{"root", "u", "v"} {
			c.UserDelete(ctx, user)
			c.RoleDelete(ctx, "of-"+user)
		}
		c.RoleDelete(ctx, "root")
	})
	return root, t.client(as("u", "upw"))
}

func (t *T) addUser(c *clientv3.Client, name, password, key, end string, what clientv3.PermissionType) {
	_, err := c.UserAdd(t.ctx, name, password)
	t.must(err)
	_, err = c.RoleAdd(t.ctx, "of-"+name)
	t.must(err)
	_, err = c.RoleGrantPermission(t.ctx, "of-"+name, key, end, what)
	t.must(err)
	_, err = c.UserGrantRole(t.ctx, name, "of-"+name)
	t.must(err)
}

func authRoot(t *T) {
	c := t.client()
	_, err := c.AuthEnable(t.ctx)
	t.wantErr("without a root", err, rpctypes.ErrRootUserNotExist)
	_, err = c.UserAdd(t.ctx, "", "x")
	t.wantErr("a user without a name", err, rpctypes.ErrUserEmpty)
	_, err = c.UserAdd(t.ctx, "root", "rootpw")
	t.must(err)
	_, err = c.AuthEnable(t.ctx)
	t.wantErr("whose root has no role", err, rpctypes.ErrRootRoleNotExist)
	_, err = c.UserDelete(t.ctx, "root")
	t.must(err)
	// A client that has a password for a server that wants none.
	keen := t.client(as("root", "rootpw"))
	t.put(keen, t.key("k"), "1")
	t.enable()
	_, err = t.tryClient(as("root", "wrong"))
	t.wantErr("a wrong password", err, rpctypes.ErrAuthFailed)
	_, err = t.tryClient(as("nobody", "x"))
	t.wantErr("a user that does not exist", err, rpctypes.ErrAuthFailed)
	_, err = c.Get(t.ctx, t.key("k"))
	t.wantErr("nobody", err, rpctypes.ErrUserEmpty)
}

func authKept(t *T) {
	root, user := t.enable()
	_, err := root.UserAdd(t.ctx, "u", "x")
	t.wantErr("a user twice", err, rpctypes.ErrUserAlreadyExist)
	_, err = root.RoleAdd(t.ctx, "of-u")
	t.wantErr("a role twice", err, rpctypes.ErrRoleAlreadyExist)
	_, err = root.UserDelete(t.ctx, "nobody")
	t.wantErr("no such user", err, rpctypes.ErrUserNotFound)
	_, err = root.RoleGet(t.ctx, "none")
	t.wantErr("no such role", err, rpctypes.ErrRoleNotFound)
	_, err = root.UserRevokeRole(t.ctx, "u", "none")
	t.wantErr("a role it has not", err, rpctypes.ErrRoleNotGranted)
	_, err = root.RoleRevokePermission(t.ctx, "of-u", "none", "")
	t.wantErr("a permission it has not", err, rpctypes.ErrPermissionNotGranted)
	_, err = root.AuthEnable(t.ctx)
	t.must(err)
	users, err := root.UserList(t.ctx)
	t.must(err)
	sort.Strings(users.Users)
	t.equal("users", users.Users, "[root u]")
	roles, err := root.RoleList(t.ctx)
	t.must(err)
	sort.Strings(roles.Roles)
	t.check(len(roles.Roles) > 0 && roles.Roles[0] == "of-u", "roles: %v", roles.Roles)
	one, err := root.UserGet(t.ctx, "u")
	t.must(err)
	t.equal("roles of a user", one.Roles, "[of-u]")
	role, err := root.RoleGet(t.ctx, "of-u")
	t.must(err)
	t.equal("permissions", len(role.Perm), 1)
	t.equal("a permission", fmt.Sprint(role.Perm[0].PermType, " ", string(role.Perm[0].Key)), "READWRITE "+t.key(""))
	_, err = user.UserAdd(t.ctx, "v", "x")
	t.wantErr("a user adds a user", err, rpctypes.ErrPermissionDenied)
	_, err = user.AuthDisable(t.ctx)
	t.wantErr("a user disables", err, rpctypes.ErrPermissionDenied)
	own, err := user.UserGet(t.ctx, "u")
	t.must(err)
	t.equal("its own roles", own.Roles, "[of-u]")
}

func authGrants(t *T) {
	root, user := t.enable()
	t.addUser(root, "v", "vpw", t.key("read"), "", clientv3.PermissionType(clientv3.PermRead))
	reader := t.client(as("v", "vpw"))
	t.put(user, t.key("read"), "1")
	t.put(root, "elsewhere", "1")
	t.equal("may read", t.value(reader, t.key("read")), "1")
	t.equal("may read its range", t.pairs(t.get(user, t.key(""), clientv3.WithPrefix())), "read=1")
	for what, attempt := range map[string]func() error{
		"a write of a reader": func() error { _, err := reader.Put(t.ctx, t.key("read"), "2"); return err },
		"a deletion":          func() error { _, err := reader.Delete(t.ctx, t.key("read")); return err },
		"a range":             func() error { _, err := reader.Get(t.ctx, t.key("read"), clientv3.WithPrefix()); return err },
		"a key elsewhere":     func() error { _, err := user.Get(t.ctx, "elsewhere"); return err },
		"a put elsewhere":     func() error { _, err := user.Put(t.ctx, "elsewhere", "2"); return err },
		"everything":          func() error { _, err := user.Get(t.ctx, "", clientv3.WithPrefix()); return err },
		"a txn that reads elsewhere": func() error {
			_, err := user.Txn(t.ctx).Then(clientv3.OpPut(t.key("k"), "1"), clientv3.OpGet("elsewhere")).Commit()
			return err
		},
		"a txn that compares elsewhere": func() error {
			_, err := user.Txn(t.ctx).If(clientv3.Compare(clientv3.Version("elsewhere"), ">", 0)).Commit()
			return err
		},
		"what a put replaces": func() error {
			_, err := root.RoleGrantPermission(t.ctx, "of-v", t.key("write"), "", clientv3.PermissionType(clientv3.PermWrite))
			t.must(err)
			t.put(reader, t.key("write"), "1")
			_, err = reader.Put(t.ctx, t.key("write"), "2", clientv3.WithPrevKV())
			return err
		},
	} {
		t.wantErr(what, attempt(), rpctypes.ErrPermissionDenied)
	}
	t.delete(root, "elsewhere")
}

func authWatches(t *T) {
	root, user := t.enable()
	kept := t.watch(user, t.key(""), clientv3.WithPrefix())
	t.put(root, t.key("k"), "1")
	t.hears("its own keys", kept, "put k=1")
	refused := func(what string, c *clientv3.Client, key string, options ...clientv3.OpOption) {
		channel := c.Watch(t.ctx, key, append(options, clientv3.WithCreatedNotify())...)
		first := t.response(channel)
		t.check(first.Err() != nil, "%s may be watched", what)
		t.closed(channel)
	}
	refused("a key elsewhere", user, "elsewhere")
	refused("everything", user, "", clientv3.WithPrefix())
	refused("more than its own keys", user, t.key(""), clientv3.WithFromKey())
	refused("what nobody asks for", t.client(), t.key("k"))
	t.hears("root hears all", t.watch(root, "", clientv3.WithPrefix(), clientv3.WithRev(t.put(root, t.key("k"), "2"))), "put k=2")
	again := t.watch(user, t.key("k"))
	t.put(user, t.key("k"), "3")
	t.hears("after a refusal", again, "put k=3")
}

func authChanges(t *T) {
	root, user := t.enable()
	t.put(user, t.key("k"), "1")
	_, err := root.UserRevokeRole(t.ctx, "u", "of-u")
	t.must(err)
	_, err = user.Put(t.ctx, t.key("k"), "2")
	t.wantErr("without the role", err, rpctypes.ErrPermissionDenied)
	_, err = root.UserGrantRole(t.ctx, "u", "of-u")
	t.must(err)
	t.put(user, t.key("k"), "3")
	_, err = root.UserChangePassword(t.ctx, "u", "new")
	t.must(err)
	_, err = t.tryClient(as("u", "upw"))
	t.wantErr("the old password", err, rpctypes.ErrAuthFailed)
	t.equal("with the new one", t.value(t.client(as("u", "new")), t.key("k")), "3")
	_, err = root.UserDelete(t.ctx, "u")
	t.must(err)
	_, err = user.Get(t.ctx, t.key("k"))
	t.check(err != nil, "a deleted user still reads")
	_, err = root.UserDelete(t.ctx, "root")
	t.wantErr("root", err, rpctypes.ErrInvalidAuthMgmt)
}

func authAgain(t *T) {
	root, user := t.enable()
	t.put(user, t.key("k"), "1")
	// Tokens are kept in memory: after a restart no token is known, and clients have to ask for another one.
	t.cluster.members[0].stop()
	t.cluster.members[0].start(t)
	t.equal("a read", t.value(user, t.key("k")), "1")
	_, err := root.UserList(t.ctx)
	t.must(err)
	t.cluster.members[0].stop()
	t.cluster.members[0].start(t)
	t.put(user, t.key("k"), "2")
	t.put(root, t.key("k"), "3")
	channel := t.watch(user, t.key("k"))
	t.put(user, t.key("k"), "4")
	t.hears("a watch", channel, "put k=4")
}

func authLeases(t *T) {
	root, user := t.enable()
	id := t.grant(user, 100)
	t.put(user, t.key("k"), "1", clientv3.WithLease(id))
	answer, err := user.KeepAliveOnce(t.ctx, id)
	t.must(err)
	t.equal("kept alive", answer.TTL, 100)
	t.check(t.alive(t.kept(user, id)) != nil, "not kept alive")
	// Revoking a lease deletes its keys, which is for those who may write them.
	t.addUser(root, "v", "vpw", "elsewhere", "", clientv3.PermissionType(clientv3.PermReadWrite))
	_, err = t.client(as("v", "vpw")).Revoke(t.ctx, id)
	t.wantErr("revoked by another one", err, rpctypes.ErrPermissionDenied)
	t.revoke(user, id)
	t.equal("its key", t.value(user, t.key("k")), "-")
}
