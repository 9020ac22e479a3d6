/*
 * svsm_bridge.h - a guest of the svsm_bridge socket transport, version 1, in one header. No dependency.
 *
 * The program that includes this is both the guest and its hypervisor: it shares memory with the server by a
 * sealed memfd, makes SVSM calls, and may change page states. Linux, C11, gcc or clang.
 *
 *     #include "svsm_bridge.h"
 *     struct sb sb;
 *     if (sb_boot(&sb, "/run/me/svsm.sock", 1 << 20) != SB_OK) ...
 *     uint64_t versions;
 *     sb_query_protocol(&sb, 4, 1, &versions);
 *     size_t n = sb_mm_header(message, sb_variable_guid, body_length) ...
 *     sb_mm_request(&sb, message, n);
 *     sb_close(&sb);
 *
 * Every function returns an enum sb_result. SB_GONE means that the VM is dead: never map it to a result
 * code of a call. Layouts are little-endian; on a big-endian machine this header refuses to compile.
 */
#ifndef SVSM_BRIDGE_H
#define SVSM_BRIDGE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "svsm_bridge.h needs a little-endian machine"
#endif

enum sb_result {
    SB_OK = 0,
    SB_GONE = -1,        /* the server is gone or silent for twice its deadline */
    SB_ERROR = -2,       /* an error reply: sb->error_code, sb->error_detail, sb->error_text */
    SB_NOT_ENTERED = -3, /* the pending flag was still set: the SVSM did not run */
    SB_CALL = -4,        /* the call was refused: sb->rax */
    SB_SYSTEM = -5,      /* a system call failed: errno */
};

enum sb_type {
    SB_HELLO = 1, SB_MEM_ADD, SB_MEM_DEL, SB_VCPU_ADD, SB_CALL_TYPE, SB_PAGE_STATE, SB_PAGE_QUERY, SB_RESET,
    SB_TDVMCALL, SB_SCHEDULE, SB_TRACE,
};

enum { SB_PAGE = 4096, SB_PAYLOAD_LIMIT = 65536, SB_MM_BUFFER = 65536 };
#define SB_RAM_BASE UINT64_C(0x100000)
#define SB_CA_GPA SB_RAM_BASE
#define SB_MM_GPA (SB_RAM_BASE + 0x10000)
#define SB_BUSY UINT64_C(0x80000007)
#define SB_INCOMPLETE UINT64_C(0x80000000)
#define SB_VMGEXIT UINT64_C(0x403)

struct sb_header { uint32_t magic; uint16_t type, flags; uint32_t length, tag; };

struct sb_hello {
    uint16_t lowest, highest; uint32_t roles; uint64_t features; uint32_t guest_vmpl, apic_ids;
    uint8_t reserved[8], client[32];
};

struct sb_hello_reply {
    uint16_t version, page_shift; uint32_t roles; uint64_t features, svsm_base, svsm_size, boot_ca;
    uint32_t core_version; uint8_t guest_vmpl, reserved[3]; uint64_t session; uint32_t deadline_ms, payload_limit;
};

struct sb_mem_add { uint64_t gpa, size, offset; uint32_t kind, state; };
struct sb_vcpu_add { uint32_t apic_id, reserved; uint64_t ca, sev_features; };
struct sb_page_state { uint64_t gpa, size; uint32_t op, reserved; uint64_t source; };
struct sb_page_info { uint32_t kind, bits; uint8_t perm[4]; uint32_t reserved; };
struct sb_reset { uint32_t kind, reserved; };

struct sb_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags;
};

struct sb_call {
    uint32_t vcpu; uint8_t vmpl, reserved[3]; uint64_t exit_code; struct sb_regs regs; uint64_t reserved2;
};

struct sb_call_reply {
    uint32_t vcpu, outcome; uint64_t ghcb_msr; struct sb_regs regs; uint64_t duration_ns;
};

_Static_assert(sizeof(struct sb_header) == 16, "header");
_Static_assert(sizeof(struct sb_hello) == 0x40, "HELLO");
_Static_assert(sizeof(struct sb_hello_reply) == 0x40, "HELLO reply");
_Static_assert(sizeof(struct sb_mem_add) == 0x20, "MEM_ADD");
_Static_assert(sizeof(struct sb_call) == 0xA8, "CALL");
_Static_assert(sizeof(struct sb_call_reply) == 0xA8, "CALL reply");

struct sb {
    int fd;                      /* the socket */
    int ram_fd;                  /* the sealed memfd */
    uint8_t *ram;                /* guest memory from SB_RAM_BASE on */
    size_t ram_bytes;
    uint32_t tag;
    struct sb_hello_reply hello; /* what the server said */
    uint64_t rax;                /* of the last call */
    uint32_t error_code, error_detail;
    char error_text[201];
    uint8_t reply[SB_PAYLOAD_LIMIT];
    uint32_t reply_length;
};

/* --- bytes ------------------------------------------------------------------------------------------- */

static inline int sb_wait(int fd, short events, int ms)
{
    struct pollfd p = { .fd = fd, .events = events };
    int n;
    do {
        n = poll(&p, 1, ms);
    } while (n < 0 && errno == EINTR);
    return n > 0;
}

static inline int sb_read(struct sb *sb, void *into, size_t size)
{
    uint8_t *at = into;
    int ms = sb->hello.deadline_ms ? (int)(2 * sb->hello.deadline_ms) : 10000;
    while (size) {
        if (!sb_wait(sb->fd, POLLIN, ms))
            return SB_GONE;
        ssize_t n = recv(sb->fd, at, size, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return SB_GONE;
        at += n;
        size -= (size_t)n;
    }
    return SB_OK;
}

/* Send raw bytes; file descriptors go with the first of them. */
static inline int sb_write(struct sb *sb, const void *data, size_t size, const int *fds, unsigned count)
{
    const uint8_t *at = data;
    while (size) {
        union { char room[CMSG_SPACE(8 * sizeof(int))]; struct cmsghdr align; } control;
        struct iovec piece = { .iov_base = (void *)(uintptr_t)at, .iov_len = size };
        struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };
        if (count) {
            memset(&control, 0, sizeof control);
            message.msg_control = control.room;
            message.msg_controllen = CMSG_SPACE(count * sizeof(int));
            struct cmsghdr *c = CMSG_FIRSTHDR(&message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(count * sizeof(int));
            memcpy(CMSG_DATA(c), fds, count * sizeof(int));
        }
        ssize_t n = sendmsg(sb->fd, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return SB_GONE;
        at += n;
        size -= (size_t)n;
        count = 0;
    }
    return SB_OK;
}

/* --- messages ---------------------------------------------------------------------------------------- */

/* Send a request and do not wait for its reply; *tag identifies it. */
static inline int sb_post(struct sb *sb, unsigned type, const void *payload, uint32_t length, const int *fds,
                          unsigned count, uint32_t *tag)
{
    uint8_t message[sizeof(struct sb_header) + 256];
    struct sb_header head = { UINT32_C(0x31425653), (uint16_t)type, 0, length, ++sb->tag };
    if (length > sizeof message - sizeof head)
        return SB_SYSTEM;
    memcpy(message, &head, sizeof head);
    if (length)
        memcpy(message + sizeof head, payload, length);
    *tag = head.tag;
    return sb_write(sb, message, sizeof head + length, fds, count);
}

/* Take the next reply into sb->reply; *tag says which request it answers. */
static inline int sb_take(struct sb *sb, uint32_t *tag)
{
    struct sb_header head;
    int r = sb_read(sb, &head, sizeof head);
    if (r != SB_OK)
        return r;
    if (head.magic != UINT32_C(0x31425653) || head.length > sizeof sb->reply || !(head.flags & 1))
        return SB_GONE;
    r = sb_read(sb, sb->reply, head.length);
    if (r != SB_OK)
        return r;
    sb->reply_length = head.length;
    *tag = head.tag;
    if (!(head.flags & 2))
        return SB_OK;
    if (head.length < 8)
        return SB_GONE;
    memcpy(&sb->error_code, sb->reply, 4);
    memcpy(&sb->error_detail, sb->reply + 4, 4);
    size_t text = head.length - 8 < sizeof sb->error_text - 1 ? head.length - 8 : sizeof sb->error_text - 1;
    memcpy(sb->error_text, sb->reply + 8, text);
    sb->error_text[text] = 0;
    return SB_ERROR;
}

/* Send a request and wait for its own reply, which must have `want` bytes. */
static inline int sb_ask(struct sb *sb, unsigned type, const void *payload, uint32_t length, const int *fds,
                         unsigned count, void *reply, uint32_t want)
{
    uint32_t tag, answered;
    int r = sb_post(sb, type, payload, length, fds, count, &tag);
    if (r != SB_OK)
        return r;
    do {
        r = sb_take(sb, &answered);
        if (r != SB_OK && r != SB_ERROR)
            return r;
    } while (answered != tag);
    if (r == SB_OK && sb->reply_length != want)
        return SB_GONE;
    if (r == SB_OK && want)
        memcpy(reply, sb->reply, want);
    return r;
}

static inline int sb_connect(struct sb *sb, const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    memset(sb, 0, sizeof *sb);
    sb->ram_fd = -1;
    sb->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sb->fd < 0 || strlen(path) >= sizeof address.sun_path)
        return SB_SYSTEM;
    memcpy(address.sun_path, path, strlen(path) + 1);
    if (connect(sb->fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(sb->fd);
        sb->fd = -1;
        return SB_GONE;
    }
    return SB_OK;
}

/* roles: bit 0 guest, bit 1 machine. guest_vmpl 1..3 with the machine role, else 0. */
static inline int sb_say_hello(struct sb *sb, uint32_t roles, uint32_t guest_vmpl, uint32_t apic_ids,
                               uint64_t features)
{
    struct sb_hello hello = { .lowest = 1, .highest = 1, .roles = roles, .features = features,
                              .guest_vmpl = guest_vmpl, .apic_ids = apic_ids, .client = "svsm_bridge.h" };
    return sb_ask(sb, SB_HELLO, &hello, sizeof hello, NULL, 0, &sb->hello, sizeof sb->hello);
}

/* A memfd that cannot shrink or grow, mapped. */
static inline int sb_make_ram(struct sb *sb, size_t bytes)
{
    sb->ram_fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (sb->ram_fd < 0 || ftruncate(sb->ram_fd, (off_t)bytes) < 0 ||
        fcntl(sb->ram_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        return SB_SYSTEM;
    sb->ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, sb->ram_fd, 0);
    if (sb->ram == MAP_FAILED) {
        sb->ram = NULL;
        return SB_SYSTEM;
    }
    sb->ram_bytes = bytes;
    return SB_OK;
}

static inline int sb_add_ram(struct sb *sb, int fd, uint64_t gpa, uint64_t bytes)
{
    struct sb_mem_add add = { .gpa = gpa, .size = bytes, .kind = 1, .state = 1 };
    return sb_ask(sb, SB_MEM_ADD, &add, sizeof add, &fd, 1, NULL, 0);
}

static inline int sb_add_vcpu(struct sb *sb, uint32_t apic_id, uint64_t ca)
{
    struct sb_vcpu_add add = { .apic_id = apic_id, .ca = ca, .sev_features = 1 };
    return sb_ask(sb, SB_VCPU_ADD, &add, sizeof add, NULL, 0, NULL, 0);
}

/* Connect, HELLO, one range of private RAM at SB_RAM_BASE, boot vCPU 0 with its calling area. */
static inline int sb_boot(struct sb *sb, const char *path, size_t ram_bytes)
{
    int r = sb_connect(sb, path);
    if (r == SB_OK)
        r = sb_say_hello(sb, 3, 2, 64, 0);
    if (r == SB_OK)
        r = sb_make_ram(sb, ram_bytes);
    if (r == SB_OK)
        r = sb_add_ram(sb, sb->ram_fd, SB_RAM_BASE, ram_bytes);
    if (r == SB_OK)
        r = sb_add_vcpu(sb, 0, SB_CA_GPA);
    return r;
}

/* Power off. */
static inline void sb_close(struct sb *sb)
{
    if (sb->fd >= 0)
        close(sb->fd);
    if (sb->ram_fd >= 0)
        close(sb->ram_fd);
    if (sb->ram)
        munmap(sb->ram, sb->ram_bytes);
    sb->fd = sb->ram_fd = -1;
    sb->ram = NULL;
}

static inline int sb_reset(struct sb *sb)
{
    struct sb_reset reset = { .kind = 1 };
    return sb_ask(sb, SB_RESET, &reset, sizeof reset, NULL, 0, NULL, 0);
}

/* --- calls ------------------------------------------------------------------------------------------- */

/* Guest memory at `gpa`. */
static inline void *sb_at(struct sb *sb, uint64_t gpa)
{
    return sb->ram + (gpa - SB_RAM_BASE);
}

/* VMGEXIT on `vcpu`: regs become what the guest finds afterwards. */
static inline int sb_enter(struct sb *sb, uint32_t vcpu, struct sb_regs *regs, uint32_t *outcome)
{
    struct sb_call call = { .vcpu = vcpu, .vmpl = sb->hello.guest_vmpl, .exit_code = SB_VMGEXIT, .regs = *regs };
    struct sb_call_reply reply;
    int r = sb_ask(sb, SB_CALL_TYPE, &call, sizeof call, NULL, 0, &reply, sizeof reply);
    if (r == SB_OK) {
        *regs = reply.regs;
        *outcome = reply.outcome;
    }
    return r;
}

/* One SVSM call of the boot vCPU; repeated with the original registers while the answer is BUSY. */
static inline int sb_svsm_call(struct sb *sb, struct sb_regs *regs)
{
    uint8_t *pending = sb_at(sb, SB_CA_GPA);
    struct sb_regs asked = *regs;
    for (;;) {
        uint32_t outcome = 0;
        __atomic_store_n(pending, 1, __ATOMIC_SEQ_CST);
        int r = sb_enter(sb, 0, regs, &outcome);
        if (r != SB_OK)
            return r;
        if (__atomic_exchange_n(pending, 0, __ATOMIC_SEQ_CST))
            return SB_NOT_ENTERED;
        sb->rax = regs->rax;
        if (regs->rax != SB_BUSY && regs->rax != SB_INCOMPLETE)
            return regs->rax ? SB_CALL : SB_OK;
        *regs = asked;
    }
}

/* QUERY_PROTOCOL: *versions = max << 32 | min, or 0. */
static inline int sb_query_protocol(struct sb *sb, uint32_t protocol, uint32_t version, uint64_t *versions)
{
    struct sb_regs regs = { .rax = 6, .rcx = (uint64_t)protocol << 32 | version };
    int r = sb_svsm_call(sb, &regs);
    *versions = r == SB_OK ? regs.rcx : 0;
    return r;
}

/* Send an MM message of `size` bytes, 24-byte header included; it is replaced by the answer. */
static inline int sb_mm_request(struct sb *sb, void *message, size_t size)
{
    struct sb_regs regs = { .rax = UINT64_C(4) << 32 | 1, .rcx = SB_MM_GPA, .rdx = SB_MM_BUFFER };
    if (size > SB_MM_BUFFER || sb->ram_bytes < 0x20000)
        return SB_SYSTEM;
    memcpy(sb_at(sb, SB_MM_GPA), message, size);
    int r = sb_svsm_call(sb, &regs);
    if (r == SB_OK)
        memcpy(message, sb_at(sb, SB_MM_GPA), size);
    return r;
}

#endif
