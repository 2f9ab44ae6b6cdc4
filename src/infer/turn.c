#include "infer/turn.h"

#include <pthread.h>
#include <stdint.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static uint64_t last_ticket, now_serving = 1;

void turn_take(void) {
    pthread_mutex_lock(&lock);
    const uint64_t mine = ++last_ticket;
    while (mine != now_serving) pthread_cond_wait(&moved, &lock);
    pthread_mutex_unlock(&lock);
}

void turn_leave(void) {
    pthread_mutex_lock(&lock);
    now_serving++;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
}
