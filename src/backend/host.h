// What every backend that computes on the processor shares: memory that is plain host memory.
#pragma once
#include "backend/backend.h"

struct buffer *host_buffer_create(struct backend *be, size_t bytes, struct error *err);
void host_buffer_destroy(struct buffer *b);
void host_upload(struct backend *be, struct tensor dst, const void *src);
void host_download(struct backend *be, void *dst, struct tensor src);
int host_fetched(struct backend *be, struct error *err);
int host_sync(struct backend *be, struct error *err);
int host_wkv7_grain(const struct backend *be, int N); // 1
