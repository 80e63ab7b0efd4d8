"""Levenberg-Marquardt in the space of the codes, batched over images and starts."""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from stages.artifacts import Callback
from stages.methods.decoder_inversion._decoder import Precision, decode, jacobian, problem_of
from stages.params import Seed

CHUNK = 64
class Fit(NamedTuple):
    codes: Tensor
    objective: Tensor
    iterations: Tensor
    converged: Tensor

def levenberg_marquardt(weights, images, codes, *, penalty, iterations, tolerance, damping=1e-3):
    codes=codes.clone()
    n,d=codes.shape
    obj=torch.empty(n,dtype=codes.dtype); its=torch.zeros(n,dtype=torch.long); conv=torch.zeros(n,dtype=torch.bool)
    for part in torch.arange(n).split(CHUNK):
        c,o,i,k=_chunk(weights,images[part],codes[part],penalty,iterations,tolerance,damping)
        codes[part],obj[part],its[part],conv[part]=c,o,i,k
    return Fit(codes,obj,its,conv)

def _chunk(weights,x,z,penalty,iterations,tolerance,damping):
    n,d=z.shape
    out=z.clone(); fobj=torch.empty(n,dtype=z.dtype); its=torch.full((n,),iterations); conv=torch.zeros(n,dtype=torch.bool)
    active=torch.arange(n)
    mu=torch.full((n,),damping,dtype=z.dtype); nu=torch.full((n,),2.0,dtype=z.dtype)
    eye=torch.eye(d,dtype=z.dtype)
    H=torch.empty(n,d,d,dtype=z.dtype); g=torch.empty(n,d,dtype=z.dtype); f=torch.empty(n,dtype=z.dtype)
    fresh=torch.ones(n,dtype=torch.bool)
    for it in range(iterations):
        idx=fresh.nonzero().flatten()
        if len(idx):
            y,J=jacobian(weights,z[idx])
            r=y-x[idx]
            H[idx]=J@J.transpose(1,2)+penalty*eye
            g[idx]=(J@r.unsqueeze(2)).squeeze(2)+penalty*z[idx]
            f[idx]=r.square().sum(1)+penalty*z[idx].square().sum(1)
        D=torch.diagonal(H,dim1=1,dim2=2)
        A=H+mu[:,None,None]*torch.diag_embed(D+1e-12*D.amax(1,keepdim=True)+1e-300)
        L,info=torch.linalg.cholesky_ex(A)
        delta=-torch.cholesky_solve(g.unsqueeze(2),L).squeeze(2)
        bad=(info>0)|~torch.isfinite(delta).all(1)
        delta=torch.where(bad[:,None],torch.zeros((),dtype=z.dtype),delta)
        trial=z+delta
        ft=(decode(weights,trial)-x).square().sum(1)+penalty*trial.square().sum(1)
        predicted=-(delta*g).sum(1)*2-(delta*(H@delta.unsqueeze(2)).squeeze(2)).sum(1)
        rho=(f-ft)/predicted.clamp(min=1e-300)
        ok=(ft<f)&~bad
        z=torch.where(ok[:,None],trial,z)
        small=(delta.norm(dim=1)<=tolerance*(z.norm(dim=1)+tolerance))
        mu=torch.where(ok,mu*(1-(2*rho-1)**3).clamp(min=1/10),mu*nu)
        nu=torch.where(ok,torch.full_like(nu,2.0),nu*2)
        fresh=ok
        fnew=torch.where(ok,ft,f)
        relsmall=ok&((f-ft)<=tolerance*f)&(rho>0.25)
        f=fnew
        done=small|(mu>1e20)|relsmall
        if done.any():
            w=active[done]
            out[w]=z[done];fobj[w]=f[done];its[w]=it+1;conv[w]=True
            k=~done
            active,z,x,mu,nu,H,g,f,fresh=active[k],z[k],x[k],mu[k],nu[k],H[k],g[k],f[k],fresh[k]
            if not len(active):break
    if len(active):
        out[active]=z;fobj[active]=f
    return out,fobj,its,conv
