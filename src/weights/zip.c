// Stored zip archives, as torch writes them: no compression, zip64 where it is needed. The central
// directory and the local headers must tell the same story.
#include "weights/internal.h"

#include "base/error.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum {
    LOCAL = 0x04034b50,
    CENTRAL = 0x02014b50,
    END = 0x06054b50,
    END64 = 0x06064b50,
    LOCATOR64 = 0x07064b50,
    END_BYTES = 22,
    MAX_COMMENT = 65535,
    MAX_MEMBERS = 1 << 20,
};

// Bits of a member's flags.
enum { ENCRYPTED = 1, SIZES_FOLLOW = 8 };

static uint64_t little(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

struct directory {
    uint64_t count, offset, bytes;
};

static int find_directory(struct directory *d, const uint8_t *data, size_t len, struct error *err) {
    if (len < END_BYTES) return fail(err, E_FORMAT, "%zu bytes, too short for a zip archive", len);
    size_t at = len - END_BYTES;
    const size_t lowest = at > MAX_COMMENT ? at - MAX_COMMENT : 0;
    while (little(data + at, 4) != END || little(data + at + 20, 2) != len - at - END_BYTES) {
        if (at == lowest)
            return fail(err, E_FORMAT, "the zip archive has no end; is it cut short?");
        at--;
    }
    const uint8_t *e = data + at;
    if (little(e + 4, 2) != little(e + 6, 2) || little(e + 8, 2) != little(e + 10, 2))
        return fail(err, E_UNSUPPORTED, "the zip archive spans several disks");
    *d = (struct directory){little(e + 10, 2), little(e + 16, 4), little(e + 12, 4)};
    if (d->count != 0xffff && d->offset != 0xffffffff && d->bytes != 0xffffffff) return 0;
    if (at < 20 || little(e - 20, 4) != LOCATOR64) return 0; // the numbers happen to be these
    const uint64_t end64 = little(e - 20 + 8, 8);
    if (end64 > at - 20 || at - 20 - end64 < 56 || little(data + end64, 4) != END64)
        return fail(err, E_FORMAT, "the zip64 end of the archive is damaged");
    *d = (struct directory){little(data + end64 + 32, 8), little(data + end64 + 48, 8),
                            little(data + end64 + 40, 8)};
    return 0;
}

// Numbers that were too large for the entry itself, in the order size, compressed size, offset.
static int read_zip64(uint64_t *size, uint64_t *packed, uint64_t *offset, const uint8_t *extra,
                      size_t len, struct error *err) {
    uint64_t *wanted[] = {size, packed, offset};
    while (len >= 4) {
        const size_t id = little(extra, 2), n = little(extra + 2, 2);
        if (n > len - 4) break;
        if (id == 1) {
            size_t used = 0;
            for (int i = 0; i < 3; i++) {
                if (*wanted[i] != 0xffffffff) continue;
                if (n - used < 8) return fail(err, E_FORMAT, "a zip64 field is too short");
                *wanted[i] = little(extra + 4 + used, 8);
                used += 8;
            }
            return 0;
        }
        extra += 4 + n;
        len -= 4 + n;
    }
    if (*size == 0xffffffff || *packed == 0xffffffff || *offset == 0xffffffff)
        return fail(err, E_FORMAT, "a large member lacks its zip64 field");
    return 0;
}

static int check_name(const char *name, size_t len, struct error *err) {
    bool bad = len == 0 || len > 1024 || name[0] == '/' || memchr(name, 0, len);
    for (size_t i = 0; !bad && i + 1 < len; i++)
        bad = name[i] == '.' && name[i + 1] == '.' && (i == 0 || name[i - 1] == '/') &&
              (i + 2 == len || name[i + 2] == '/');
    return bad ? fail(err, E_FORMAT, "a member has the name \"%.*s\"", len > 60 ? 60 : (int)len,
                      name)
               : 0;
}

static int read_member(struct zip_member *m, const uint8_t *c, const uint8_t *data, size_t len,
                       struct error *err) {
    const size_t name_len = little(c + 28, 2), extra_len = little(c + 30, 2);
    uint64_t packed = little(c + 20, 4), size = little(c + 24, 4), offset = little(c + 42, 4);
    m->name = (const char *)c + 46;
    m->name_len = name_len;
    if (check_name(m->name, name_len, err)) return -1;
    if (read_zip64(&size, &packed, &offset, c + 46 + name_len, extra_len, err)) return -1;
    if (little(c + 8, 2) & ENCRYPTED) return fail(err, E_UNSUPPORTED, "encrypted");
    if (little(c + 10, 2) != 0)
        return fail(err, E_UNSUPPORTED,
                    "compressed (method %u); torch stores its members, so this is another archive",
                    (unsigned)little(c + 10, 2));
    if (packed != size) return fail(err, E_FORMAT, "stored, but its two sizes differ");
    if (offset > len || len - offset < 30 || little(data + offset, 4) != LOCAL)
        return fail(err, E_FORMAT, "its local header is not where the directory says");
    const uint8_t *l = data + offset;
    const size_t l_name = little(l + 26, 2), l_extra = little(l + 28, 2);
    if (len - offset - 30 < l_name + l_extra || l_name != name_len ||
        memcmp(l + 30, m->name, name_len) || little(l + 8, 2) != 0 ||
        little(l + 6, 2) != little(c + 8, 2))
        return fail(err, E_FORMAT, "its local header disagrees with the directory");
    uint64_t l_packed = little(l + 18, 4), l_size = little(l + 22, 4), none = 0;
    if (read_zip64(&l_size, &l_packed, &none, l + 30 + l_name, l_extra, err)) return -1;
    // Checksum and sizes may follow the data; the header says 0 then, and the directory rules.
    const bool later = little(l + 6, 2) & SIZES_FOLLOW && !l_size && !l_packed;
    if (!later && (l_size != size || l_packed != size || little(l + 14, 4) != little(c + 16, 4)))
        return fail(err, E_FORMAT, "its local header says %llu bytes, the directory %llu%s",
                    (unsigned long long)l_size, (unsigned long long)size,
                    l_size == size ? ", and the rest differs" : "");
    const uint64_t start = offset + 30 + l_name + l_extra;
    if (size > len - start)
        return fail(err, E_FORMAT, "its %llu bytes reach past the end of the file",
                    (unsigned long long)size);
    m->data = data + start;
    m->len = size;
    return 0;
}

int zip_order(const void *a, const void *b) {
    const struct zip_member *x = a, *y = b;
    const size_t n = x->name_len < y->name_len ? x->name_len : y->name_len;
    const int c = memcmp(x->name, y->name, n);
    return c ? c : (x->name_len > y->name_len) - (x->name_len < y->name_len);
}

// Two members of one name: which of them counts would be a matter of taste.
static int check_unique(const struct zip_member *sorted, size_t count, struct error *err) {
    for (size_t i = 1; i < count; i++)
        if (zip_order(&sorted[i - 1], &sorted[i]) == 0)
            return fail(err, E_FORMAT, "the zip member \"%.*s\" is there twice",
                        sorted[i].name_len > 100 ? 100 : (int)sorted[i].name_len, sorted[i].name);
    return 0;
}

int zip_read(struct zip_member **members, size_t *count, const uint8_t *data, size_t len,
             struct error *err) {
    struct directory d;
    *members = NULL;
    *count = 0;
    if (find_directory(&d, data, len, err)) return -1;
    if (d.offset > len || d.bytes > len - d.offset || d.count > MAX_MEMBERS ||
        d.count > d.bytes / 46)
        return fail(err, E_FORMAT, "the zip directory (%llu members) does not fit the file",
                    (unsigned long long)d.count);
    struct zip_member *list = mem_zero(d.count, sizeof *list);
    const uint8_t *c = data + d.offset;
    size_t left = d.bytes;
    for (size_t i = 0; i < d.count; i++) {
        const size_t bytes =
            left < 46 ? 47 : 46 + little(c + 28, 2) + little(c + 30, 2) + little(c + 32, 2);
        if (bytes > left || little(c, 4) != CENTRAL) {
            fail(err, E_FORMAT, "the zip directory is damaged at member %zu", i);
            goto bad;
        }
        if (read_member(&list[i], c, data, len, err)) {
            fail_in(err, "zip member %zu", i);
            goto bad;
        }
        c += bytes;
        left -= bytes;
    }
    if (left) {
        fail(err, E_FORMAT, "%zu bytes follow the zip directory's last member", left);
        goto bad;
    }
    if (d.count) qsort(list, d.count, sizeof *list, zip_order);
    if (check_unique(list, d.count, err)) goto bad;
    *members = list;
    *count = d.count;
    return 0;
bad:
    free(list);
    return -1;
}
