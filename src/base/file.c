#include "base/file.h"

#include "base/error.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WRITE_BUFFER = 1 << 18 };

static int fail_errno(struct error *err, const char *path, const char *what) {
    return fail(err, E_IO, "%s: %s: %s", path, what, strerror(errno));
}

// O_NONBLOCK, so that opening a FIFO that nobody writes to doesn't hang before we can refuse it.
static int open_regular(const char *path, struct stat *st, struct error *err) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail_errno(err, path, "cannot open");
    if (fstat(fd, st)) {
        fail_errno(err, path, "cannot stat");
    } else if (S_ISDIR(st->st_mode)) {
        fail(err, E_IO, "%s: is a directory, expected a file", path);
    } else if (!S_ISREG(st->st_mode)) {
        fail(err, E_IO, "%s: is not a regular file", path);
    } else {
        return fd;
    }
    close(fd);
    return -1;
}

// ---- files that shrink -------------------------------------------------------------------------

// Reading a mapped file behind an end that came nearer raises SIGBUS, in whatever thread reads. The
// handler puts a page of zeros there and notes it; the reader goes on and finds out by asking. So
// nothing is jumped out of, and no lock stays taken.
static struct file_watch {
    _Atomic uintptr_t begin; // of the mapping; 0: this watch is free
    _Atomic size_t len;
    _Atomic bool shrank;
} watches[256];
enum { NUM_WATCHES = sizeof watches / sizeof watches[0] };
static _Atomic size_t page_size;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    const uintptr_t at = (uintptr_t)info->si_addr;
    const size_t page = page_size;
    (void)context;
    for (int i = 0; i < NUM_WATCHES; i++) {
        struct file_watch *w = &watches[i];
        const uintptr_t begin = w->begin;
        if (!begin || at < begin || at - begin >= w->len) continue;
        // The call itself and not the library's: two readers of a page may both come here and both
        // put zeros, which a race detector would take for a write beside a read.
        const uintptr_t start = at / page * page;
        if (syscall(SYS_mmap, start, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                    0) != (long)start)
            break;
        w->shrank = true;
        return;
    }
    signal(number, SIG_DFL); // not ours: it happens again, and ends the program
}

static void install_handler(void) {
    page_size = (size_t)sysconf(_SC_PAGESIZE);
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

// With more mappings than watches the rest goes without. The handler is set each time: test
// frameworks and sanitizers take the signal for themselves now and then.
static void watch(struct file *f) {
    install_handler();
    for (int i = 0; i < NUM_WATCHES; i++) {
        uintptr_t none = 0;
        if (!atomic_compare_exchange_strong(&watches[i].begin, &none, (uintptr_t)f->data)) continue;
        watches[i].shrank = false;
        watches[i].len = f->len;
        f->watch = &watches[i];
        return;
    }
}

bool file_shrank(const struct file *f) {
    return f->watch && f->watch->shrank;
}

int file_map(struct file *f, const char *path, struct error *err) {
    *f = (struct file){0};
    struct stat st;
    const int fd = open_regular(path, &st, err);
    if (fd < 0) return -1;
    int rc = 0;
    f->len = (size_t)st.st_size;
    f->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    if (f->len) {
        void *p = mmap(NULL, f->len, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED) {
            rc = fail_errno(err, path, "cannot map");
            f->len = 0;
        } else {
            f->data = p;
            watch(f);
        }
    }
    close(fd);
    return rc;
}

void file_unmap(struct file *f) {
    if (!f) return;
    if (f->watch) {
        f->watch->len = 0;
        f->watch->begin = 0;
    }
    if (f->data) munmap((void *)f->data, f->len);
    *f = (struct file){0};
}

int file_read(struct str *out, const char *path, struct error *err) {
    struct stat st;
    const int fd = open_regular(path, &st, err);
    if (fd < 0) return -1;
    int rc = 0;
    char block[16384];
    for (;;) {
        const ssize_t n = read(fd, block, sizeof block);
        if (n == 0) break;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            rc = fail_errno(err, path, "cannot read");
            break;
        }
        if (str_append(out, block, (size_t)n)) {
            rc = fail(err, E_LIMIT, "%s: larger than the limit of %zu bytes", path, out->max);
            break;
        }
    }
    close(fd);
    return rc;
}

int file_create(struct file_writer *w, const char *path, struct error *err) {
    const size_t len = strlen(path);
    *w = (struct file_writer){.fd = -1, .err = err, .path = mem_strdup(path)};
    w->tmp_path = mem_alloc(len + 5);
    memcpy(w->tmp_path, path, len);
    memcpy(w->tmp_path + len, ".tmp", 5);
    // What only its owner may read stays so: from before the first byte is written.
    struct stat old;
    const bool replaces = stat(path, &old) == 0 && S_ISREG(old.st_mode);
    const mode_t mode = replaces ? old.st_mode & 0777 : 0666;
    w->fd = open(w->tmp_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (w->fd < 0 || (replaces && fchmod(w->fd, mode))) {
        fail_errno(err, w->tmp_path, "cannot create");
        file_abort(w);
        return -1;
    }
    w->buf = mem_alloc(WRITE_BUFFER);
    return 0;
}

static int write_all(struct file_writer *w, const uint8_t *data, size_t len) {
    while (len) {
        const ssize_t n = write(w->fd, data, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            w->failed = true;
            return fail_errno(w->err, w->tmp_path, "cannot write");
        }
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int flush(struct file_writer *w) {
    const size_t len = w->buf_len;
    w->buf_len = 0;
    return write_all(w, w->buf, len);
}

int file_write(struct file_writer *w, const void *data, size_t len) {
    if (w->failed || w->fd < 0) return -1;
    w->written += len;
    if (len >= WRITE_BUFFER) return flush(w) ? -1 : write_all(w, data, len);
    if (w->buf_len + len > WRITE_BUFFER && flush(w)) return -1;
    if (len) memcpy(w->buf + w->buf_len, data, len);
    w->buf_len += len;
    return 0;
}

int file_commit(struct file_writer *w) {
    int rc = -1;
    if (w->failed || w->fd < 0 || flush(w)) goto out;
    if (fsync(w->fd)) {
        fail_errno(w->err, w->tmp_path, "cannot sync");
        goto out;
    }
    const int closed = close(w->fd);
    w->fd = -1;
    if (closed) {
        fail_errno(w->err, w->tmp_path, "cannot close");
        goto out;
    }
    if (rename(w->tmp_path, w->path)) {
        fail_errno(w->err, w->path, "cannot rename into place");
        goto out;
    }
    char *dir = path_dir(w->path);
    rc = file_sync_dir(dir, w->err);
    free(dir);
    free(w->tmp_path);
    w->tmp_path = NULL; // in place: nothing is left to remove
out:
    file_abort(w);
    return rc;
}

void file_abort(struct file_writer *w) {
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    if (w->tmp_path) unlink(w->tmp_path);
    free(w->tmp_path);
    free(w->path);
    free(w->buf);
    *w = (struct file_writer){.fd = -1, .failed = true};
}

int file_replace(const char *path, const void *data, size_t len, struct error *err) {
    struct file_writer w;
    if (file_create(&w, path, err)) return -1;
    file_write(&w, data, len);
    return file_commit(&w);
}

bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

int file_mkdirs(const char *path, struct error *err) {
    char *p = mem_strdup(path);
    int rc = 0;
    for (char *s = *p == '/' ? p + 1 : p; rc == 0; s++) {
        const char c = *s;
        if (c != '/' && c) continue;
        *s = 0;
        struct stat st;
        if (mkdir(p, 0777) && !(errno == EEXIST && stat(p, &st) == 0 && S_ISDIR(st.st_mode)))
            rc = fail_errno(err, p, "cannot create the folder");
        *s = c;
        if (!c) break;
    }
    free(p);
    return rc;
}

int file_sync_dir(const char *path, struct error *err) {
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail_errno(err, path, "cannot open the folder");
    // Some file systems can't sync a folder and say EINVAL; the rename is all they offer.
    const int rc = fsync(fd) && errno != EINVAL ? fail_errno(err, path, "cannot sync") : 0;
    close(fd);
    return rc;
}

char *path_join(const char *dir, const char *name) {
    if (name[0] == '/' || !dir[0]) return mem_strdup(name);
    const size_t len = strlen(dir) + strlen(name) + 2;
    char *p = mem_alloc(len);
    snprintf(p, len, "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", name);
    return p;
}

char *path_absolute(const char *path) {
    char *here = getcwd(NULL, 0); // NULL when the folder is gone: then the path stays as it is
    char *absolute = here ? path_join(here, path) : mem_strdup(path);
    free(here);
    return absolute;
}

// Whether path[0, len) is a folder and no link.
static bool is_plain_dir(char *path, size_t len) {
    struct stat st;
    const char after = path[len];
    path[len] = 0;
    const bool plain = !lstat(path, &st) && S_ISDIR(st.st_mode);
    path[len] = after;
    return plain;
}

void path_tidy(char *path) {
    const char *from = path + (*path == '/');
    char *const root = path + (*path == '/');
    char *to = root; // what is kept ends here, without a slash behind
    while (*from) {
        const size_t len = strcspn(from, "/");
        char *parent = to; // where the last kept name begins
        while (parent > root && parent[-1] != '/') parent--;
        const bool up = len == 2 && !memcmp(from, "..", 2);
        const bool kept_up = to - parent == 2 && !memcmp(parent, "..", 2);
        if (up && to > root && !kept_up && is_plain_dir(path, (size_t)(to - path))) {
            to = parent > root ? parent - 1 : root;
        } else if (len && !(len == 1 && *from == '.')) {
            if (to > root) *to++ = '/';
            memmove(to, from, len);
            to += len;
        }
        from += len;
        from += *from == '/';
    }
    if (to == path && *path) *to++ = '.'; // nothing is left but where we stand
    *to = 0;
}

char *path_dir(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return mem_strdup(".");
    const size_t len = slash == path ? 1 : (size_t)(slash - path);
    char *p = mem_zero(len + 1, 1);
    memcpy(p, path, len);
    return p;
}

bool path_has_ext(const char *path, const char *ext) {
    const char *dot = strrchr(path, '.');
    return dot && !strchr(dot, '/') && strcasecmp(dot + 1, ext) == 0;
}
