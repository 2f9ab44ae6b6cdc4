#include "train/team.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// In memory that all members share; the desks follow, two a member: while the others still read
// what was laid down for one meeting, the next is prepared on the other one.
struct shared {
    _Alignas(64) _Atomic uint32_t arrived;
    _Alignas(64) _Atomic uint32_t meetings;
    _Atomic int left; // members that have failed so far
    struct farewell {
        _Atomic int turn; // 1: was the first to fail; 0: has said nothing
        struct error err;
    } farewells[TEAM_MOST];
};

enum { DESKS = (sizeof(struct shared) + 4095) / 4096 * 4096 };

struct team {
    struct shared *shared;
    int rank, size;
    uint32_t meetings; // that this member has been to
};

int team_rank(const struct team *t) {
    return t ? t->rank : 0;
}

int team_size(const struct team *t) {
    return t ? t->size : 1;
}

// ---- meeting -----------------------------------------------------------------------------------

// About as long as members that compute the same are apart; then the processor is somebody else's.
enum { SPINS = 2000 };

static char *desk(const struct team *t, int rank, uint32_t meeting) {
    return (char *)t->shared + DESKS + ((size_t)rank * 2 + meeting % 2) * TEAM_DESK;
}

void *team_mine(struct team *t) {
    return desk(t, t->rank, t->meetings);
}

const void *team_theirs(const struct team *t, int rank) {
    return desk(t, rank, t->meetings - 1);
}

void team_meet(struct team *t) {
    struct shared *s = t->shared;
    const uint32_t before = t->meetings++;
    if (atomic_fetch_add(&s->arrived, 1) + 1 == (uint32_t)t->size) {
        atomic_store(&s->arrived, 0);
        atomic_fetch_add(&s->meetings, 1);
        syscall(SYS_futex, &s->meetings, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        return;
    }
    for (int i = 0; i < SPINS && atomic_load(&s->meetings) == before; i++) {
    }
    while (atomic_load(&s->meetings) == before)
        syscall(SYS_futex, &s->meetings, FUTEX_WAIT, before, NULL, NULL, 0);
}

// ---- a member ----------------------------------------------------------------------------------

void team_leave(struct team *t, const struct error *err) {
    if (!t) return;
    struct farewell *f = &t->shared->farewells[t->rank];
    f->err = *err;
    atomic_store(&f->turn, atomic_fetch_add(&t->shared->left, 1) + 1);
    _exit(1);
}

// ---- the one who waits for them ----------------------------------------------------------------

static struct {
    pid_t pid[TEAM_MOST]; // 0: over
    int size;
} watched;                          // signal handlers look at it
static volatile sig_atomic_t asked; // the last signal handed on

static void hand_on(int number) {
    asked = number;
    for (int i = 0; i < watched.size; i++)
        if (watched.pid[i]) kill(watched.pid[i], number);
}

// The rank of a member that is over and its status; -1: there is none, or none yet without waiting.
static int reap(int *status, bool wait) {
    for (;;) {
        siginfo_t info = {0};
        while (waitid(P_ALL, 0, &info, WEXITED | WNOWAIT | (wait ? 0 : WNOHANG)))
            if (errno != EINTR) return -1;
        if (!info.si_pid) return -1;
        int i = 0;
        while (i < watched.size && watched.pid[i] != info.si_pid) i++;
        if (i < watched.size) watched.pid[i] = 0; // before the number may become somebody else's
        waitpid(info.si_pid, status, 0);
        if (i < watched.size) return i; // else a child of what ran in this process before us
    }
}

// Who is to blame: one that died, else the first that said something, else that failed.
static int culprit(const struct shared *s, const int *status) {
    int found = -1, best = 0;
    for (int i = 0; i < watched.size; i++) {
        if (watched.pid[i] || !status[i]) continue;
        const int turn = atomic_load(&s->farewells[i].turn);
        const int weight = WIFSIGNALED(status[i]) ? 2 + TEAM_MOST : turn ? 2 + TEAM_MOST - turn : 1;
        if (weight > best) found = i, best = weight;
    }
    return found;
}

static int blame(const struct shared *s, int rank, pid_t pid, int status, struct error *err) {
    const struct farewell *f = &s->farewells[rank];
    if (WIFSIGNALED(status))
        fail(err, E_DEVICE, "process %d was killed by signal %d (%s); the others were stopped",
             (int)pid, WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (atomic_load(&f->turn))
        fail(err, f->err.code, "%s", f->err.msg);
    else
        fail(err, E_DEVICE, "process %d ended with exit code %d; the others were stopped", (int)pid,
             WEXITSTATUS(status));
    return fail_in(err, "rank %d of %d", rank, watched.size);
}

// Waits for all; at the first that is not well, for none.
static int watch(const struct shared *s, struct error *err) {
    pid_t pids[TEAM_MOST];
    int status[TEAM_MOST] = {0}, left = watched.size, i, how = 0;
    memcpy(pids, watched.pid, sizeof pids);
    for (; left && !how; left--) {
        if ((i = reap(&how, true)) < 0) die("the processes that train cannot be waited for");
        status[i] = how;
    }
    if (!how) return 0;
    // When one dies its neighbours may fail over it and be noticed sooner: a moment for the cause.
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    for (; left && (i = reap(&how, false)) >= 0; left--) status[i] = how;
    const int who = culprit(s, status);
    for (i = 0; i < watched.size; i++)
        if (watched.pid[i]) kill(watched.pid[i], SIGKILL);
    while (left && reap(&how, true) >= 0) left--;
    // Asked to stop before they could do so in order, or asked twice: so it ends here too.
    if (asked && WIFSIGNALED(status[who]) && WTERMSIG(status[who]) == asked) {
        signal(asked, SIG_DFL);
        raise(asked);
    }
    return blame(s, who, pids[who], status[who], err);
}

// ---- the beginning -----------------------------------------------------------------------------

static sigset_t stop_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    return set;
}

static _Noreturn void be_member(struct team *t, pid_t parent, const sigset_t *mask,
                                int (*work)(void *, struct team *, struct error *), void *ctx) {
    struct error err;
    // Nobody stays behind when the parent is killed.
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent) _exit(1);
    watched.size = 0;
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    sigprocmask(SIG_SETMASK, mask, NULL);
    if (work(ctx, t, &err)) team_leave(t, &err);
    exit(0);
}

// Starts the members, all of them or -1.
static int start(struct shared *s, int size, const sigset_t *mask,
                 int (*work)(void *, struct team *, struct error *), void *ctx, struct error *err) {
    const pid_t parent = getpid();
    fflush(NULL); // what is buffered is written once
    for (watched.size = 0; watched.size < size; watched.size++) {
        struct team t = {.shared = s, .rank = watched.size, .size = size};
        const pid_t pid = fork();
        if (pid == 0) be_member(&t, parent, mask, work, ctx);
        if (pid < 0)
            return fail(err, E_IO, "no process %d of %d: %s", watched.size + 1, size,
                        strerror(errno));
        watched.pid[watched.size] = pid;
    }
    return 0;
}

int team_run(int size, int (*work)(void *ctx, struct team *team, struct error *err), void *ctx,
             struct error *err) {
    if (size == 1) return work(ctx, NULL, err);
    assert(size > 1 && size <= TEAM_MOST);
    const size_t bytes = DESKS + (size_t)size * 2 * TEAM_DESK;
    struct shared *s = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s == MAP_FAILED)
        return fail(err, E_IO, "no %zu bytes of shared memory: %s", bytes, strerror(errno));
    const sigset_t stop = stop_signals();
    const struct sigaction ours = {.sa_handler = hand_on};
    struct sigaction old[2];
    sigset_t mask;
    int status;
    asked = 0;
    sigprocmask(SIG_BLOCK, &stop, &mask); // until all are there to be told
    sigaction(SIGINT, &ours, &old[0]);
    sigaction(SIGTERM, &ours, &old[1]);
    signal(SIGCHLD, SIG_DFL); // who started us may have had it ignored: then nobody is waited for
    int rc = start(s, size, &mask, work, ctx, err);
    for (int i = 0; rc && i < watched.size; i++) kill(watched.pid[i], SIGKILL);
    while (rc && reap(&status, true) >= 0) {
    }
    sigprocmask(SIG_SETMASK, &mask, NULL);
    if (rc == 0) rc = watch(s, err);
    sigaction(SIGINT, &old[0], NULL);
    sigaction(SIGTERM, &old[1], NULL);
    munmap(s, bytes);
    return rc;
}
