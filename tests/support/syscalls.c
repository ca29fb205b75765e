/* Preloaded into a server under test: its system calls of one kind are counted, and those that its test chooses are struck:
 * the server is killed in their place, they fail, or they are held up. TEST_SYSCALL names the kind. With TEST_SYSCALL_PATH
 * only calls on files count whose path has that text in it. TEST_SYSCALL_FILE is shared with the test: `struct orders`.
 *
 * Where TEST_SYSCALL_IMAGES names a folder, each file is copied there at its call, under its inode, so that a test can give it
 * back what it held when it was last synced.
 *
 * A filter of the kernel (seccomp) hands the calls to a thread here, whichever library makes them; the thread was started
 * before the filter and is not under it. Exit code 99 where the kernel has no such filters. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct { const char *kind; int numbers[5]; } kinds[] = {
    {"write", {SYS_pwrite64, SYS_pwritev, SYS_pwritev2, -1}},
    {"fdatasync", {SYS_fdatasync, -1}},
    {"fsync", {SYS_fsync, -1}},
#ifdef SYS_rename
    {"rename", {SYS_rename, SYS_renameat, SYS_renameat2, -1}},
    {"unlink", {SYS_unlink, SYS_unlinkat, -1}},
    {"open", {SYS_open, SYS_openat, -1}},
#else
    {"rename", {SYS_renameat2, -1}},
    {"unlink", {SYS_unlinkat, -1}},
    {"open", {SYS_openat, -1}},
#endif
    {"fallocate", {SYS_fallocate, -1}},
    {"ftruncate", {SYS_ftruncate, -1}},
};

/* What the test says and hears; tests/support/syscalls.rs has the same order. */
struct orders {
    int64_t skip;   /* calls that go on before the first that is struck */
    int64_t strike; /* calls to be struck from then on; -1: all */
    int64_t error;  /* they fail with this errno; 0: the server is killed */
    int64_t hold;   /* while it is 1 no call goes on */
    int64_t seen;   /* calls that have come */
    int64_t struck; /* calls that were struck */
};

static volatile struct orders *orders;
static volatile int listener = -1;
static const char *part_of_path;
static const char *images;

static void give_up(void) { _exit(99); }

/* The copy gets its name when it is whole: the server may be killed at any time. */
static void keep(int number) {
    char name[64], target[512], unfinished[520], part[1 << 16];
    struct stat about;
    snprintf(name, sizeof name, "/proc/self/fd/%d", number);
    int from = open(name, O_RDONLY | O_CLOEXEC);
    if (from < 0 || fstat(from, &about) != 0) give_up();
    snprintf(target, sizeof target, "%s/%llu", images, (unsigned long long)about.st_ino);
    snprintf(unfinished, sizeof unfinished, "%s.new", target);
    int to = open(unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0) give_up();
    ssize_t count;
    while ((count = read(from, part, sizeof part)) > 0)
        if (write(to, part, (size_t)count) != count) give_up();
    if (count < 0 || rename(unfinished, target) != 0) give_up();
    close(from);
    close(to);
}

static int is_in(const char *path) { return path && strstr(path, part_of_path); }

static int is_in_descriptor(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_in(path);
}

/* Whether a call is on one of the files that count. Paths are the server's own memory, so it is in reach. */
static int counts(const struct seccomp_data *call) {
    if (!part_of_path) return 1;
    const char *first = (const char *)(uintptr_t)call->args[0], *second = (const char *)(uintptr_t)call->args[1];
    const char *fourth = (const char *)(uintptr_t)call->args[3];
    switch (call->nr) {
#ifdef SYS_rename
    case SYS_rename: return is_in(first) || is_in(second);
    case SYS_unlink: case SYS_open: return is_in(first);
    case SYS_renameat:
#endif
    case SYS_renameat2: return is_in(second) || is_in(fourth);
    case SYS_unlinkat: case SYS_openat: return is_in(second);
    default: return is_in_descriptor((int)call->args[0]);
    }
}

/* Every call of the kind comes here, one after the other. */
static void *watch(void *unused) {
    (void)unused;
    while (listener < 0) usleep(100);
    for (;;) {
        struct seccomp_notif call;
        struct seccomp_notif_resp answer;
        memset(&call, 0, sizeof call);
        memset(&answer, 0, sizeof answer);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) != 0) {
            if (errno == EINTR || errno == ENOENT) continue;
            give_up();
        }
        answer.id = call.id;
        answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        if (counts(&call.data)) {
            orders->seen++;
            if (images) keep((int)call.data.args[0]);
            while (orders->hold) usleep(1000);
            if (orders->skip > 0) {
                orders->skip--;
            } else if (orders->strike != 0) {
                if (orders->strike > 0) orders->strike--;
                orders->struck++;
                if (orders->error == 0) kill(getpid(), SIGKILL);
                answer.flags = 0;
                answer.error = -(int)orders->error;
            }
        }
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
    return NULL;
}

static void filter(const int *numbers) {
    struct sock_filter code[10];
    unsigned short count = 0, length = 0;
    while (numbers[count] >= 0) count++;
    code[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned short at = 0; at < count; at++)
        code[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, numbers[at], count - at, 0);
    code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog program = {length, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) give_up();
    long file = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (file < 0) give_up();
    listener = (int)file;
}

__attribute__((constructor)) static void begin(void) {
    const char *kind = getenv("TEST_SYSCALL"), *name = getenv("TEST_SYSCALL_FILE");
    if (!kind || !*kind) return;
    if (!name) abort();
    part_of_path = getenv("TEST_SYSCALL_PATH");
    if (part_of_path && !*part_of_path) part_of_path = NULL;
    images = getenv("TEST_SYSCALL_IMAGES");
    int file = open(name, O_RDWR | O_CLOEXEC);
    if (file < 0) abort();
    void *page = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    orders = page;
    close(file);
    for (size_t at = 0; at < sizeof kinds / sizeof *kinds; at++) {
        if (strcmp(kinds[at].kind, kind) != 0) continue;
        pthread_t thread;
        if (pthread_create(&thread, NULL, watch, NULL) != 0) abort();
        filter(kinds[at].numbers);
        return;
    }
    abort();
}
