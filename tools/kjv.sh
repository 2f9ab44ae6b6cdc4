#!/bin/sh
# The King James Bible as text to train on: tools/kjv.sh DIR writes DIR/train.jsonl and DIR/val.jsonl,
# a book a line. The text is Debian's (bible-kjv-text, read by the `bible` program of bible-kjv).
# Held out whole, about 4 % of the text: a narrative (Ruth, Esther), wisdom (Ecclesiastes), prophecy
# (Daniel, Hosea), a letter (Philippians).
set -eu

if [ $# -ne 1 ]; then
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
fi
if ! command -v bible >/dev/null; then
    echo "kjv.sh: the program \`bible\` is missing; ./setup.sh demo installs it" >&2
    exit 1
fi
mkdir -p "$1"

# "Ge1:1 In the beginning …": a verse a line. Out: title, chapters, verses as lines without numbers.
bible -f 'gen1:1-rev22:21' 2>/dev/null | awk -v dir="$1" '
    BEGIN {
        names = "Ge=Genesis Exo=Exodus Lev=Leviticus Num=Numbers Deu=Deuteronomy Josh=Joshua" \
            " Jdgs=Judges Ruth=Ruth 1Sm=1_Samuel 2Sm=2_Samuel 1Ki=1_Kings 2Ki=2_Kings" \
            " 1Chr=1_Chronicles 2Chr=2_Chronicles Ezra=Ezra Neh=Nehemiah Est=Esther Job=Job" \
            " Psa=Psalms Prv=Proverbs Eccl=Ecclesiastes SSol=Song_of_Solomon Isa=Isaiah" \
            " Jer=Jeremiah Lam=Lamentations Eze=Ezekiel Dan=Daniel Hos=Hosea Joel=Joel Amos=Amos" \
            " Obad=Obadiah Jonah=Jonah Mic=Micah Nahum=Nahum Hab=Habakkuk Zep=Zephaniah" \
            " Hag=Haggai Zec=Zechariah Mal=Malachi Mat=Matthew Mark=Mark Luke=Luke John=John" \
            " Acts=Acts Rom=Romans 1Cor=1_Corinthians 2Cor=2_Corinthians Gal=Galatians" \
            " Eph=Ephesians Phi=Philippians Col=Colossians 1Th=1_Thessalonians" \
            " 2Th=2_Thessalonians 1Tim=1_Timothy 2Tim=2_Timothy Titus=Titus Phmn=Philemon" \
            " Heb=Hebrews Jas=James 1Pet=1_Peter 2Pet=2_Peter 1Jn=1_John 2Jn=2_John 3Jn=3_John" \
            " Jude=Jude Rev=Revelation"
        n = split(names, pairs, " ")
        for (i = 1; i <= n; i++) {
            split(pairs[i], pair, "=")
            gsub("_", " ", pair[2])
            title[pair[1]] = pair[2]
        }
        split("Ruth Est Eccl Dan Hos Phi", list, " ")
        for (i in list) held_out[list[i]] = 1
    }
    function end_book() {
        if (book != "") printf "\"}\n" > (dir (book in held_out ? "/val" : "/train") ".jsonl.tmp")
    }
    {
        colon = index($1, ":")
        match(substr($1, 1, colon - 1), /[0-9]+$/)
        name = substr($1, 1, RSTART - 1)
        number = substr($1, RSTART, RLENGTH)
        if (!(name in title)) { print "kjv.sh: unknown book " name > "/dev/stderr"; exit 1 }
        out = dir (name in held_out ? "/val" : "/train") ".jsonl.tmp"
        if (name != book) {
            end_book()
            book = name
            chapter = 0
            books++
            printf "{\"text\": \"%s\\n", title[name] > out
        }
        if (number != chapter) {
            chapter = number
            printf "\\nChapter %d\\n\\n", chapter > out
        }
        text = substr($0, length($1) + 2)
        gsub(/\\/, "\\\\", text)
        gsub(/"/, "\\\"", text)
        gsub(/[[:cntrl:]]/, "", text)
        printf "%s\\n", text > out
        verses++
    }
    END {
        end_book()
        if (books != 66 || verses != 31102) {
            print "kjv.sh: " books " books of " verses " verses, expected 66 of 31102" > "/dev/stderr"
            exit 1
        }
    }'
for part in train val; do mv "$1/$part.jsonl.tmp" "$1/$part.jsonl"; done
echo "kjv.sh: $(wc -l <"$1/train.jsonl") books to train on, $(wc -l <"$1/val.jsonl") held out"
