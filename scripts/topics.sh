# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts that need the series in topics, after common.sh.
# shellcheck shell=sh disable=SC2154

# topics: their names, in order
topics() { sed -n 's/^# topic \([a-z]*\):.*/\1/p' "$series"; }

# topic_needs TOPIC: the topics that it builds on, and it, in order
topic_needs()
{
	awk -v topic="$1" '
		function add(name, i, n, needs) {
			if (name in added) return
			added[name]
			n = split(on[name], needs, " ")
			for (i = 1; i <= n; i++) add(needs[i])
		}
		/^# topic / { name = $3; sub(/:/, "", name); order[++nr] = name; sub(/^[^:]*:/, ""); on[name] = $0 }
		END { add(topic); for (i = 1; i <= nr; i++) if (order[i] in added) print order[i]; exit !(topic in on) }
		' "$series" || die "there is no topic $1, but $(topics | paste -sd' ')"
}
