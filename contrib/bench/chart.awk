# SPDX-License-Identifier: BSD-3-Clause
#
# awk -f chart.awk rows.txt results.csv: the medians as bars, one panel a row, as SVG.
#
# Each panel has its own scale, because ratios are what is to be seen.  A dark line marks where
# nbdcow is wanted to be, counted from qemu-nbd's bar (or else the first other side's).

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

function number(v,    s, r) {
    if (v < 10) return sprintf("%.3g", v)
    s = sprintf("%.0f", v)
    while (length(s) > 3) {
        r = "," substr(s, length(s) - 2) r
        s = substr(s, 1, length(s) - 3)
    }
    return s r
}

function escaped(s) {
    gsub(/&/, "\\&amp;", s)
    gsub(/</, "\\&lt;", s)
    return s
}

function text(x, y, class, s) {
    printf "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, class, escaped(s)
}

# Where nbdcow should be, from the first want that compares it with another side; "" if none does.
function target(run, metric, wants,    n, i, want, at, other) {
    n = split(wants, want, " ")
    for (i = 1; i <= n; i++) {
        at = match(want[i], /[<>]=/)
        other = substr(want[i], 1, at - 1)
        if (other !~ /^@/ && (run, other) in seen)
            return side_median(run, other, metric) * substr(want[i], at + 2)
    }
    return ""
}

# One panel with its top left corner at X, Y.
function panel(x, y, f,    i, s, n, v, max, goal, w) {
    text(x, y + 14, "title", f[2])
    text(x + WIDTH, y + 14, "unit", f[4] (f[5] == "more" ? ", longer is better" : ", shorter is better"))
    goal = target(f[1], f[3], f[6])
    max = goal == "" ? 0 : goal
    for (i = 1; i <= nsides; i++)
        if ((f[1], order[i]) in seen) {
            v[i] = side_median(f[1], order[i], f[3])
            if (v[i] > max) max = v[i]
        }
    y += 22
    for (i = 1; i <= nsides; i++) {
        if (!(i in v)) continue
        w[i] = max > 0 ? v[i] / max * BARS : 0
        text(x + LABEL - 6, y + n * PITCH + 11, "label", name[order[i]])
        printf "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n",
            x + LABEL, y + n * PITCH, w[i] < 1 ? 1 : w[i], PITCH - 4, colour[order[i]]
        n++
    }
    if (goal != "")
        printf "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"goal\"/>\n",
            x + LABEL + goal / max * BARS, x + LABEL + goal / max * BARS, y - 3, y + n * PITCH - 1
    n = 0 # the figures last, so that nothing lies on them
    for (i = 1; i <= nsides; i++)
        if (i in v)
            text(x + LABEL + w[i] + 5, y + n++ * PITCH + 11, "value", number(v[i]))
}

function panel_height(run,    i, n) {
    for (i = 1; i <= nsides; i++)
        if ((run, order[i]) in seen) n++
    return 22 + n * PITCH + 16
}

BEGIN {
    WIDTH = 520; LABEL = 84; BARS = 340; PITCH = 17; GAP = 40; MARGIN = 24; HEAD = 64
    nsides = split("nbdcow qemu nbdkit plugin qcow2dec bare plain", order, " ")
    split("nbdcow|qemu-nbd|nbdkit raw|plugin|qcow2dec|bare loop|nothing counted", title_of, "|")
    split("#d1495b|#8d99ae|#edae49|#e07a5f|#b8a36a|#3d5a80|#6a994e", tint, "|")
    for (i = 1; i <= nsides; i++) {
        name[order[i]] = title_of[i]
        colour[order[i]] = tint[i]
    }
}

FNR == 1 { file++ }
file == 1 && /^[^#]/ { row[++nrows] = $0 }
file == 2 && FNR > 1 {
    split($0, f, ",")
    if (f[5] == "failed") next
    value[f[1], f[2], f[5], f[4]] = f[6]
    seen[f[1], f[2]] = 1
    ran[f[1]] = 1
    if (f[4] > turns) turns = f[4]
}

END {
    # Two columns, each next panel to the shorter one.
    for (r = 1; r <= nrows; r++) {
        split(row[r], f, " *[|] *")
        if (!(f[1] in ran)) continue
        c = height[1] < height[0]
        column[r] = c
        top[r] = height[c]
        height[c] += panel_height(f[1])
    }
    h = HEAD + (height[0] > height[1] ? height[0] : height[1]) + MARGIN
    w = 2 * WIDTH + GAP + 2 * MARGIN
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">\n",
        w, h, w, h
    print "<style>"
    print "text { font-family: sans-serif; font-size: 12px; fill: #222 }"
    print ".head { font-size: 18px; font-weight: bold } .title { font-weight: bold }"
    print ".unit { fill: #777; font-size: 11px; text-anchor: end } .label { text-anchor: end }"
    print ".value { font-size: 11px; stroke: white; stroke-width: 3; paint-order: stroke } .goal { stroke: #111; stroke-width: 2; stroke-dasharray: 3 2 }"
    print "</style>"
    printf "<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n", w, h
    text(MARGIN, 30, "head", "nbdcow and its peers")
    text(MARGIN, 48, "value", "Medians of " turns " turns. Each panel has its own scale. The dashed line is where nbdcow is wanted to be.")
    for (r = 1; r <= nrows; r++) {
        split(row[r], f, " *[|] *")
        if (f[1] in ran)
            panel(MARGIN + column[r] * (WIDTH + GAP), HEAD + top[r], f)
    }
    print "</svg>"
}
