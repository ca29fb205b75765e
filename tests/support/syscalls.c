/* Preloaded into a server under test: its system calls of one kind are counted, and at the n-th one the server is killed, or
 * the call fails with EIO. TEST_SYSCALL is "KIND N kill" or "KIND N eio"; TEST_SYSCALL_FILE holds an int64_t that becomes 1
 * when that has happened.
 *
 * With "KIND 0 keep" each file is copied at its call, so that a test can give it back what it held when it was last synced:
 * TEST_SYSCALL_IMAGES is a folder for the copies, which are named by inode.
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

static const struct { const char *kind; int numbers[4]; } kinds[] = {
    {"write", {SYS_pwrite64, SYS_pwritev, SYS_pwritev2, -1}},
    {"fdatasync", {SYS_fdatasync, -1}},
    {"fsync", {SYS_fsync, -1}},
#ifdef SYS_rename
    {"rename", {SYS_rename, SYS_renameat, SYS_renameat2, -1}},
    {"unlink", {SYS_unlink, SYS_unlinkat, -1}},
#else
    {"rename", {SYS_renameat2, -1}},
    {"unlink", {SYS_unlinkat, -1}},
#endif
    {"fallocate", {SYS_fallocate, -1}},
    {"ftruncate", {SYS_ftruncate, -1}},
};

static volatile int64_t *fired;
static volatile int listener = -1;
static long left;
static int kills;
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
        if (images) keep((int)call.data.args[0]);
        if (--left == 0) {
            *fired = 1;
            if (kills) kill(getpid(), SIGKILL);
            answer.flags = 0;
            answer.error = -EIO;
        }
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
    return NULL;
}

static void filter(const int *numbers) {
    struct sock_filter code[8];
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
    const char *order = getenv("TEST_SYSCALL"), *name = getenv("TEST_SYSCALL_FILE");
    char kind[16], outcome[8];
    if (!order || !*order) return;
    if (sscanf(order, "%15s %ld %7s", kind, &left, outcome) != 3 || !name) abort();
    kills = strcmp(outcome, "kill") == 0;
    if (strcmp(outcome, "keep") == 0 && !(images = getenv("TEST_SYSCALL_IMAGES"))) abort();
    int file = open(name, O_RDWR | O_CLOEXEC);
    if (file < 0) abort();
    void *page = mmap(NULL, sizeof *fired, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    fired = page;
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
