// Files: mapped to be read, or written beside and renamed so that a crash leaves the old or the new
// one and never half of either.
#pragma once
#include "base/str.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

// A regular file mapped read-only. Directories, FIFOs and devices are refused by name. If someone
// cuts the file short while it is mapped, what is behind its new end reads as zeros from then on,
// and file_shrank says so: ask it after reading what matters. Any thread may read.
struct file {
    const uint8_t *data; // NULL when the file is empty
    size_t len;          // bytes
    int64_t mtime_ns;
    struct file_watch *watch; // what file_shrank asks; NULL: nobody watches
};

int file_map(struct file *f, const char *path, struct error *err);
void file_unmap(struct file *f); // NULL and unmapped are fine
bool file_shrank(const struct file *f);

// Appends the whole file to `out`, whose ceiling limits it.
int file_read(struct str *out, const char *path, struct error *err);

// Written to "<path>.tmp" in the same folder; commit does fsync, rename, fsync of the folder. A
// file that is replaced keeps its permissions; a link at `path` is replaced itself. One owner
// thread. A failed write is remembered: later calls return -1 at once, commit reports it.
struct file_writer {
    int fd; // -1: closed
    char *path, *tmp_path;
    uint8_t *buf;
    size_t buf_len;
    uint64_t written; // bytes so far, buffered ones included
    struct error *err;
    bool failed;
};

// `err` stays in use until commit or abort: it receives the first failure.
int file_create(struct file_writer *w, const char *path, struct error *err);
int file_write(struct file_writer *w, const void *data, size_t len);
int file_commit(struct file_writer *w); // -1: nothing was replaced, the temporary file is gone
void file_abort(struct file_writer *w); // after commit or a second time: does nothing

// The whole file at once, in the same safe way.
int file_replace(const char *path, const void *data, size_t len, struct error *err);

bool file_exists(const char *path);
int file_mkdirs(const char *path, struct error *err); // the folder and its parents
int file_sync_dir(const char *path, struct error *err);

// "dir/name", or `name` itself when it is absolute. Freed by the caller.
char *path_join(const char *dir, const char *name);
// The path from the root, without looking whether it is there. Freed by the caller.
char *path_absolute(const char *path);
// Takes "." and "name/.." out of a path, in place, where that doesn't change what it names: `name`
// must be a folder that is there, and no link.
void path_tidy(char *path);
// The folder a path lies in ("." when it names none). Freed by the caller.
char *path_dir(const char *path);
// Whether the path ends in ".ext" (ext without the dot), ignoring case.
bool path_has_ext(const char *path, const char *ext);
