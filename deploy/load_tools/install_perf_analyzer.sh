#!/bin/sh
# Install perf_analyzer 2.60 into a directory of its own, and print the command that runs it.
#
#   deploy/load_tools/install_perf_analyzer.sh ~/.local/share/perf_analyzer
#
# PyPI's wheel is for glibc 2.38 and newer, so pip silently falls back to 0.1.0, an empty placeholder, on Debian 12 and
# Ubuntu 22.04. There the loader and C library of Debian 13 are put beside it, in the directory only (16 MB; needs apt).
set -eu

directory=$(mkdir -p "${1:?usage: $0 DIRECTORY}" && cd "$1" && pwd)
python=${PYTHON:-python3}
version=2.60.0
command="$directory/perf_analyzer"

"$python" -m pip download -qq --no-deps --only-binary=:all: --platform manylinux_2_38_x86_64 \
    --dest "$directory" "perf_analyzer==$version"
"$python" -m zipfile -e "$directory"/perf_analyzer-"$version"-*.whl "$directory/wheel"
binary="$directory/wheel/perf_analyzer/bin/perf_analyzer"
chmod +x "$binary"

libc=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
if [ "$(printf '%s\n2.38\n' "$libc" | sort -V | head -n1)" = 2.38 ]; then
    ln -sf "$binary" "$command"
else
    apt="$directory/apt"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian trixie main" > "$apt/sources.list"
    cat > "$apt/apt.conf" <<CONF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt";
APT::Sandbox::User "root";
CONF
    export APT_CONFIG="$apt/apt.conf"
    apt-get -qq update
    (cd "$apt" && apt-get -qq download libc6 libgcc-s1 libstdc++6)
    for package in "$apt"/*.deb; do dpkg-deb -x "$package" "$directory/libc"; done
    rm -rf "$apt"
    libraries="$directory/libc/usr/lib/x86_64-linux-gnu"
    cat > "$command" <<RUN
#!/bin/sh
exec "$libraries/ld-linux-x86-64.so.2" \\
    --library-path "$libraries:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu" "$binary" "\$@"
RUN
    chmod +x "$command"
fi
rm -f "$directory"/*.whl
echo "$command"
