# SPDX-License-Identifier: BSD-3-Clause
#
# awk -f report.awk rows.txt results.csv: the table of medians, with each wanted ratio, met or not.
#
# A ratio is the median of the turns' own ratios: two sides are measured one behind the other, so
# what the machine did meanwhile cancels out.  Its range over the turns is shown behind it.

function median(list, n,    i, j, t) {
    for (i = 2; i <= n; i++)
        for (j = i; j > 1 && list[j - 1] > list[j]; j--) {
            t = list[j]; list[j] = list[j - 1]; list[j - 1] = t
        }
    return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
}

function side_median(run, side, metric,    t, n, list) {
    for (t = 1; t <= turns; t++)
        if ((run, side, metric, t) in value)
            list[++n] = value[run, side, metric, t]
    return n ? median(list, n) : ""
}

function number(v) {
    if (v == "") return "-"
    if (v >= 1000) return grouped(sprintf("%.0f", v))
    if (v >= 100) return sprintf("%.0f", v)
    if (v >= 10) return sprintf("%.1f", v)
    if (v >= 1) return sprintf("%.2f", v)
    return sprintf("%.3f", v)
}

function grouped(s,    r) {
    while (length(s) > 3) {
        r = "," substr(s, length(s) - 2) r
        s = substr(s, 1, length(s) - 3)
    }
    return s r
}

# What A in RUN_A is to B in RUN_B: one line, and the verdict counted.
function compare(run_a, a, run_b, b, metric, op, want, what,    t, n, list, x, lo, hi, m, met) {
    for (t = 1; t <= turns; t++) {
        if (!((run_a, a, metric, t) in value) || !((run_b, b, metric, t) in value)) continue
        if (value[run_b, b, metric, t] == 0) continue
        x = value[run_a, a, metric, t] / value[run_b, b, metric, t]
        list[++n] = x
        if (n == 1 || x < lo) lo = x
        if (n == 1 || x > hi) hi = x
    }
    if (!n) {
        printf "    %-42s not measured\n", what
        unmeasured++
        return
    }
    m = median(list, n)
    want += 0 # a part of a string compares as a string
    met = op == ">=" ? m >= want : m <= want
    printf "    %-42s %7.3f (%.3f to %.3f), wanted %s %g: %s\n", what, m, lo, hi, op, want,
        met ? "met" : "NOT MET"
    if (met) nmet++; else nmissed++
}

function verdicts(run, title, metric, better, wants,    n, i, want, at, op, other, bound) {
    n = split(wants, want, " ")
    for (i = 1; i <= n; i++) {
        at = match(want[i], /[<>]=/)
        op = substr(want[i], at, 2)
        other = substr(want[i], 1, at - 1)
        bound = substr(want[i], at + 2)
        if (other ~ /^@/)
            compare(run, "nbdcow", substr(other, 2), "nbdcow", metric, op, bound,
                "nbdcow against itself in " substr(other, 2))
        else
            compare(run, "nbdcow", run, other, metric, op, bound, "nbdcow against " name[other])
    }
    op = better == "more" ? ">=" : "<="
    if ((run, "plugin") in seen && (run, "nbdkit") in seen)
        compare(run, "plugin", run, "nbdkit", metric, op, better == "more" ? 0.95 : 1.05,
            "plugin against " name["nbdkit"])
    if ((run, "plugin") in seen && (run, "qcow2dec") in seen)
        compare(run, "plugin", run, "qcow2dec", metric, op, 1, "plugin against " name["qcow2dec"])
}

BEGIN {
    nsides = split("nbdcow qemu nbdkit plugin qcow2dec bare plain", order, " ")
    split("nbdcow|qemu-nbd|nbdkit raw|plugin|qcow2dec|bare loop|nothing counted", title_of, "|")
    for (i = 1; i <= nsides; i++) name[order[i]] = title_of[i]
}

FNR == 1 { file++ }
file == 1 && /^[^#]/ { row[++nrows] = $0 }
file == 2 && FNR > 1 {
    split($0, f, ",")
    if (f[5] == "failed") { failed[f[1], f[2]] = 1; next }
    value[f[1], f[2], f[5], f[4]] = f[6]
    seen[f[1], f[2]] = 1
    ran[f[1]] = 1
    if (f[3] != "-") mode[f[1], f[2]] = f[3]
    if (f[4] > turns) turns = f[4]
}

END {
    for (r = 1; r <= nrows; r++) {
        split(row[r], f, " *[|] *")
        if (!(f[1] in ran)) continue
        printf "%s (%s) [%s]\n    ", f[2], f[4], f[1]
        for (i = 1; i <= nsides; i++) {
            s = order[i]
            if ((f[1], s) in failed)
                printf "%s failed   ", name[s]
            else if ((f[1], s) in seen)
                printf "%s%s %s   ", name[s], (f[1], s) in mode ? "[" mode[f[1], s] "]" : "",
                    number(side_median(f[1], s, f[3]))
        }
        printf "\n"
        verdicts(f[1], f[2], f[3], f[5], f[6])
    }
    printf "\n%d met, %d not met, %d not measured\n", nmet, nmissed, unmeasured
}
